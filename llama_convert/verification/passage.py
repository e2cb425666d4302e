"""A passage that every language model finds easy, and how hard it may find it.

The unit is bits per byte of text: the negative log-likelihood of the passage, without the BOS before it, over
the length of its UTF-8.  Unlike perplexity per token it does not depend on the tokenizer.
"""

PASSAGE = (
    "One day a little girl named Lily went to the park with her mom. She saw a big red ball in the grass. "
    'Lily was very happy and she wanted to play with the ball. A boy came and said, "That is my ball." '
    'Lily said, "I am sorry. Can we play together?" The boy smiled and said yes. They played all day, and '
    'they had a lot of fun. When the sun went down, her mom said, "It is time to go home." Lily said '
    "goodbye to her new friend. She went home, had dinner, and went to bed. She was happy to have a friend."
)

MAX_BITS_PER_BYTE = 1.5
"""What a checkpoint that speaks stays below.

A model that has learnt nothing needs log2(vocabulary) bits a token, which is 3.5 to 4 bits a byte for any
Llama's tokenizer, and one whose queries and keys are scrambled needs about as many; English costs a trained
model one bit a byte or less, down to the smallest (0.69 for one of 260 thousand parameters).  Half-way,
on a logarithmic scale, is 1.5 to 2.
"""

"""Difficult texts, on which wrong tokenizers differ first."""

CORPUS: tuple[str, ...] = (
    # Nothing, and white space alone: where a prefix, a stripped end or a collapsed run shows.
    *["", " ", "  ", "   ", "    ", " " * 7, " " * 16, " " * 33, "\t", "\t\t", "\n", "\n\n", "\n\n\n"],
    *["\r", "\r\n", "\r\n\r\n", "\n\r", " \n", "\n ", " \n ", "\t \t", " \t\n ", "\v", "\f", "\u00a0"],
    *["\u2003", "\u3000", "\u200b", "\u2028", "\u2029", "\u202f", "\u1680"],
    # Spaces before, after and between letters.
    *["Hello", " Hello", "  Hello", "   Hello", "Hello ", "Hello  ", "Hello\n", "Hello \n", "\nHello"],
    *["\tHello", "Hello world", "Hello  world", "Hello   world", " Hello world ", "Hello\tworld"],
    *["Hello\nworld", "Hello\u00a0world", "one\n\n\ntwo", "one\r\ntwo\r\n", "one \n two", "a , b . c ! d"],
    *["trailing tab\t", "trailing nbsp\u00a0"],
    # English, its contractions in both cases, with both apostrophes.
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure you're right; they've said he'd go, she'll stay, it's fine, don't worry.",  # style: said
    "I'M SURE YOU'RE RIGHT; THEY'VE SAID HE'D GO, SHE'LL STAY, IT'S FINE, DON'T WORRY.",
    *["'s 't 're 've 'm 'll 'd", "'S'T'RE'VE'M'LL'D", "'sad 'then 'revel", "we\u2019re y\u2019all"],
    *["rock 'n' roll", "x'\u017f", "O'Neil's", "''''", "'"],
    # Upper case, mixed case, long words.
    *["HELLO WORLD", "hELLO wORLD", "CamelCaseAndsnake_case", "iPhone", "NASA", "McDonald"],
    "antidisestablishmentarianism",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "Lopadotemachoselachogaleokranioleipsanodrimhypotrimmatosilphioparaomelitokatakechymenokichlepikossyphophattoperister",
    *["a" * 3, "a" * 31, "a" * 500, "ab" * 200, "xyz" * 100, "thethethethethe", "A" * 64, "zqxj" * 20],
    # Digits: runs of every length modulo three, groups, other scripts, letters next to them.
    *["1", "12", "123", "1234", "12345", "123456", "1234567", "0" * 20, "3.14159", "-273.15", "1,000,000"],
    *["1e-5", "2024-02-29T23:59:59Z", "192.168.0.1", "0xDEADBEEF", "v1.2.3", "B2B", "4K", "7th"],
    *["+1 (555) 010-9999", "100%", "٠١٢٣٤٥٦٧٨٩", "०१२३४५", "๑๒๓๔", "一二三", "½ ⅓ ²³", "Ⅷ ⅻ", "①②③"],
    *["１２３４"],
    # Punctuation and symbols, alone, in runs, and before line ends.
    *["!", "!!", "!!!", "...", "…", "----", "=" * 80, "#" * 6, "***", "~~~", "/////", "\\\\", "?!?!"],
    *["()[]{}<>", "@#$%^&*", ";\n", "};\n\n", "...\n\n\n", "!\r\n", " .", " ,", "\"quoted\""],
    *["“curly” ‘quotes’", "«guillemets»", "¿Qué?", "§ 5 ¶", "€100 £50 ¥1000 ₹9", "±×÷≠≤≥∞∑∫√", "←↑→↓⇒"],
    *["©®™", "a|b", "a||b", "a&&b", "e.g. i.e. etc.", "C++ C# F#"],
    # Latin letters with marks, composed and not; ligatures, special casing.
    *["café", "cafe\u0301", "naïve", "Ångström", "A\u030angstro\u0308m", "ĳ ŀ ŉ ǆ", "ﬁ ﬂ ﬀ", "ß ẞ"],
    *["İstanbul ıIiİ", "ø Ø æ Æ œ", "Z\u0338\u0322a\u0334l\u0337g\u0335o\u0336", "q\u0307\u0323"],
    *["q\u0323\u0307", "Tiếng Việt", "Łódź", "Čeština", "Îți mulțumesc", "K \u212a", "Å \u212b", "ſ"],
    *["µ μ", "ＦＵＬＬ　ｗｉｄｔｈ", "ㅎㅏㄴ", "한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"],
    # Scripts.
    "Съешь ещё этих мягких французских булок",
    "Ο γρήγορος καφετής σκύλος, ᾧ ἀγαθέ",
    "שלום עולם, שָׁלוֹם",
    "مرحبا بالعالم، السَّلَامُ عَلَيْكُم",
    "नमस्ते दुनिया, क्षत्रिय",
    "வணக்கம் உலகம்",
    "হ্যালো বিশ্ব",
    "ສະບາຍດີ",
    "สวัสดีชาวโลก",
    "မင်္ဂလာပါ",
    "ជំរាបសួរ",
    "გამარჯობა მსოფლიო",
    "Բարեւ աշխարհ",
    "ሰላም ዓለም",
    "ᏣᎳᎩ",
    "ᠮᠣᠩᠭᠣᠯ",
    "བོད་སྐད་",
    "你好,世界!今天天气怎么样?",
    "繁體中文與简体中文",
    "こんにちは、世界。カタカナとひらがな",
    "안녕하세요 세계",
    "𠀀𠮷𪚥",
    "𐍈𐌰𐌽 𓀀𓂀 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "mixed 中文 and العربية and русский in one",
    # Emoji: skin tones, joiners, flags, keycaps, tags, selectors.
    *["👍", "👍🏽", "👩‍👩‍👧‍👦", "👨🏿‍🚀", "🏳️‍🌈", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🇩🇪🇫🇷🇯🇵", "1️⃣", "☺", "☺️", "❤️‍🔥"],
    *["😀😀😀😀", "ok 👌🏻!", "\u200d", "\ufe0f"],
    # Characters without a token, or that are no letters.
    *["\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\x80", "\x85", "\x9f", "\u00ad"],
    *["\u061c", "\u200e\u200f", "\ufeff", "\ufeffBOM", "\ufffd", "\ufffe", "\uffff", "\ue000"],
    *["\U000f0000", "\U0010ffff", "\U0001f9ff", "\U000e0001"],
    # Spellings that mean something to a tokenizer.
    *["<s>", "</s>", "<unk>", "<pad>", "<s", "s>", "< s >", "<S>", "<0x0A>", "<0x41><0xFF>", "<0x", "▁"],
    *["▁▁", "a▁b", " ▁ ", "Ġ", "ĠHello", "Ċ", "Âł", "##ing", "[INST] hi [/INST]"],
    *["<<SYS>>\nbe brief\n<</SYS>>\n\n", "<PRE> x <SUF>y <MID>", "<EOT>", "<|begin_of_text|>"],
    *["<|end_of_text|>", "<|eot_id|>", "a<|eot_id|>b", "<|eot_id|> <|eot_id|>\n", "<|eot_id|", "|eot_id|>"],
    "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>",
    *["<|python_tag|>", "<|eom_id|>", "<|reserved_special_token_0|>", "<|reserved_special_token_999|>"],
    *["<|endoftext|>", "<|EOT_ID|>", "<step>", "Source: user\n\n hi<step>", "{{ bos_token }}"],
    *["{% if x %}", "[MASK] [CLS]"],
    # Code, data, addresses.
    "def f(x: int) -> int:\n    if x < 2:\n        return x\n\n    return f(x - 1) + f(x - 2)  # slow\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\n}\n",  # style: ;
    "fn main() { println!(\"{:?}\", vec![1, 2, 3]); }",
    "SELECT a, COUNT(*) FROM t WHERE b >= 3 AND c LIKE '%x%' GROUP BY a;",
    "<html>\n  <body class=\"x\">&nbsp;&amp;</body>\n</html>",  # style: ;
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "x = {'a': [1, 2], 'b': (3,)}; y = x['a'][-1] ** 2 // 3 != 0",
    "$ grep -rn 'foo' . | awk '{print $1}' > out.txt 2>&1",
    "\\begin{equation} e^{i\\pi} + 1 = 0 \\end{equation}",
    "https://example.com/a/b?q=1&r=%20x#frag user.name+tag@mail.example.org C:\\Users\\me\\file.txt",
    "# Title\n\n- item 1\n- item 2\n\n```python\nprint('hi')\n```\n\n| a | b |\n|---|---|\n",
    "diff --git a/x b/x\n@@ -1,2 +1,2 @@\n-old\n+new\n",
    "SGVsbG8gd29ybGQhIFRoaXMgaXMgYmFzZTY0Lg==",
    "\t\t\tdeep\n\t\ttabs\n\tback\n",
    "word " * 60,
    "Ein Satz. Une phrase. Una frase. Одно предложение. 一句话。 文。 문장. جملة. वाक्य।",
)  # fmt: skip
"""Some three hundred: scripts, marks, emoji, runs, spaces, controls, code, and names of special tokens."""

"""Text on which tokenizers differ, for tests that compare one with another."""

from __future__ import annotations

from hypothesis import strategies as st

from llm.tokenizer.added import replace_surrogates

WHITE = "".join(map(chr, [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029]))
WHITE += "\u202f\u205f\u3000"

HARD = [
    "",
    "a",
    " ",
    "Hello, world! It's what they've said: I'D RATHER NOT, he'll say 'tis.",
    "'ſ 'ſS k \u212a 'LL 'Ve I'M don'T '' 'sx",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈🇫🇷🇩🇪 ☺️ 🧑🏿‍🚀x👨‍💻 #️⃣1️⃣",
    "漢字かな交じり文。「こんにちは」、世界！ 한국어 문장입니다. 中文没有空格１２３",
    "مرحبا بالعالم، كيف حالُك؟ ١٢٣ שלום עולם",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง नमस्ते दुनिया ༄༅། བོད་",
    "def f(x):\n\treturn {'a': [x**2 for _ in range(10)]}  # ok\r\n\n\n    if x!=3:\n        pass\n",
    '<div class="x">&amp;</div> a->b; c==d && e||f; https://x.y/z?q=1%20&r=#t ~~~ ----- ..... !!!?',
    "1234567890" * 9 + " 3.14159 1,000,000 2024-01-31 ½ Ⅷ ² ๓ 0x1F 1e-9 '1 1's 12'3 x1y2 1 2  3\n4",
    "".join(map(chr, range(32))) + "".join(map(chr, range(127, 161))),
    "=\x04=\x06a\x13\x14b \x16c\x1d\x04",
    WHITE,
    "x".join(WHITE) + "y \n ".join(WHITE) + "  ".join(WHITE) + "1 \t".join(WHITE),
    "   leading and trailing   ",
    "a  b   c    d\n e\n\n f \n \n g\t\th\r\n\r\ni \u3000 j",
    "\n \n",
    "\n  ",
    "end \n \n   ",
    "é e\u0301 ñ n\u0303 Å \u212b A\u030a 가 \u1100\u1161 ﬁ ① ½ a\u0328\u0301",
    "\u0301alone \u1e9b\u0323 \u0958",
    "\ud800 lone \udfff x\ud83d \ude00 \ud83d\ude00 joined",
    "\ufeffBOM \u200b\u200c\u200d\u2060 \u202eright-to-left\u202c \ufffd \ufffe \uffff \U0001fffe",
    "\U00040000 \U000f0000= =\U0010fffd \U0010ffff \U00011de3 1\U00016ff5'2 \U000105c9",
    "ÀÉÎõü straße ẞ İstanbul ǅ ʰ ªº Ωμέγα ЖЁ mixedCASEWords HTTPServer iPhone's don’t",
    "<|endoftext|><|im_start|>user\n<|im_end|> </s><s><unk> <0x0A> <think>so</think> <|im_startx <|",
    "▁under▁▁line ▁ Ġbyte ĠĠ Ċ <0xE2>",
    "supercalifragilisticexpialidocious" * 20,
    "aaaa" * 50 + "abab" * 50 + "!?" * 50,
]
"""Short and hard."""

LONG = {
    "letters": "a" * 1_000_000,
    "spaces": " " * 1_000_001,
    "spaces and a word": " " * 1_000_001 + "x",
    "line breaks and spaces": "x" + "\n" * 600_000 + " " * 600_000 + "1",
    "emoji": "😀" * 250_000,
    "digits": "7" * 300_000,
    "no spaces": "thequickbrownfox" * 60_000,
}
"""About a megabyte each, by what it is."""

HARD_ALPHABET = sorted(set("".join(HARD)) - {"\ud800"})

hard_strings: st.SearchStrategy[str] = st.one_of(
    st.text(max_size=40),
    st.text(st.sampled_from(HARD_ALPHABET), max_size=40),
    st.text(st.sampled_from("ab1 \n\r\t'sS\u3000é\u0301.\x04"), max_size=30),
    st.lists(st.sampled_from([*HARD[3:], " ", "\n", "'s", "<think>"]), max_size=3).map("".join),
).map(replace_surrogates)
"""Unicode text in which the hard is likely."""

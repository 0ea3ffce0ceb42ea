"""Control tokens with bytes of their own."""

from llm.tokenizer import TiktokenTokenizer
from llm.tokenizer.spelled import SpelledTokenizer

RANKS = {bytes([value]): value for value in range(256)}


def test_only_the_named_control_tokens_are_text() -> None:
    plain = TiktokenTokenizer(RANKS, control={"<call>": 256, "<end>": 257}, end_of_text=257)
    spelled = SpelledTokenizer(plain, ["<call>"])
    assert (plain.token_bytes(256), spelled.token_bytes(256)) == (b"", b"<call>")
    assert spelled.token_bytes(257) == b"" and spelled.token_bytes(65) == b"A"
    assert spelled.control == {"<end>": 257}
    assert spelled.encode("<call>") == plain.encode("<call>") == list(b"<call>")
    assert spelled.decode([65, 256, 257]) == "A<call>"
    assert (spelled.vocab_size, spelled.end_of_text, spelled.longest_token) == (258, 257, plain.longest_token)

"""Records the ids that transformers' CLIPTokenizer, as diffusers loads it, gives texts of every kind.

    python record_tokenizer.py    after record_pipeline.py, whose two tokenizers it loads

Writes tokenizer.json: for tokenizer (padded with the end token) and tokenizer_2 (padded with "!") a list of
{text, all, ids}: without start and end, and cut and padded as the encoders get them. Without ftfy, as
transformers and diffusers install.
"""

import json
from importlib.util import find_spec

from record_models import GOLDENS
from transformers import CLIPTokenizer

TEXTS = [
    # plain
    "",
    " ",
    "a red lighthouse at dusk",
    "A RED Lighthouse",
    "the blue bird, the green tree; the fish",
    # whitespace and characters that are not shown
    "  a \t red\n\r\n  bird  ",
    "a\u00a0red\u2003bird\u3000blue\u2028light\u2029boat",
    "a\x0bred\x0cbird\x85blue\x1clight\x7f",
    "re\u200bd bi\u200drd \ufeffblue\u00ad bo\u202eat\u2066",
    "bl\x00ue \ufffd li\ufffdght \ue000bi\ue000rd \U000f0000",
    "e\u200d\u0301 comes together",  # what stands between is dropped before it is composed
    # contractions and quotes
    "the boat's light, they're here, I'm, we've, he'd, she'll, don't, 's 't",
    "THE BOAT'S LIGHT THEY'RE",
    "the boat\u2019s 'light' \"bird\" ''s 'ſ",
    # digits and punctuation
    "42 birds 1234567890 3.14 1,000 2nd 4k",
    "½ ² Ⅻ ٣ ४ 〇",
    "a-b_c (d) [e] {f} #g @h $i %j ^k &l *m +n =o /p \\q |r ~s `t <u>",
    "?!... --- :-) <3 ;;;",
    "don't_stop 'tis o'clock rock'n'roll",
    # letters beyond ASCII
    "café naïve Ünïcödé ÅNGSTRÖM",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "ΣΊΣΥΦΟΣ ΑΣ Σ ΑΣ. İstanbul ISPARTA ẞ ß ǅ ﬁ",
    "привет мир שלום مرحبا नमस्ते สวัสดี",
    "红色 lighthouse 灯塔 \u3400\u4dbf \uf900 豈",
    "\U00020000\U0002a6df \U0002ceb0\U0002ceb1 \U0002f800\U00030000\U00030001",
    "こんにちは カタカナ 한국어 \u1112\u1161\u11ab",
    # emoji
    "🐱 🔥🔥 bird🐦bird",
    "👩‍👩‍👧‍👦 👍🏽 🇨🇭 ❤️ ☂ ©",
    # entities, markup, special tokens
    "&amp; &lt;b&gt; &quot;bird&quot; &#39;s &#x27;s &nbsp;",
    "<b>bird</b> <|startoftext|> <|endoftext|> bird",
    "bird<|endoftext|>blue ?<|startoftext|>! <|END<|endoftext|>",
    "<|EndOfText|> <|STARTOFTEXT|> <| endoftext|> <|endof\u200btext|>",
    # "!" is a token of its own where it is the padding
    "!",
    "!!! bird! a!b ?! !? ! !",
    "wow! the boat's! !! 's!t '!s 1!2",
    "!<|endoftext|>! é!\u0301",
    # cut
    "a red bird and a blue fish under the green tree at dusk by the boat",
    "light " * 14,
    "light " * 13 + "!",
    "light " * 15,
    "!" * 40,
    "supercalifragilisticexpialidocious",
]

if __name__ == "__main__":
    assert not find_spec("ftfy"), "with ftfy installed, transformers cleans texts another way"
    golden = {}
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = CLIPTokenizer.from_pretrained(GOLDENS / "tiny-sdxl" / name)
        padded = tokenizer(TEXTS, padding="max_length", truncation=True).input_ids
        whole = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
        golden[name] = [{"text": t, "all": a, "ids": i} for t, a, i in zip(TEXTS, whole, padded)]
    lines = [f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in golden.items()]
    (GOLDENS / "tokenizer.json").write_text("{" + ",\n".join(lines) + "}\n")

"""Small tokenizers of every kind that is exported, and texts that they must split alike wherever they run."""

from itertools import chain

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from secateur.exporting.vocabulary import SPLITS

SPECIAL = ["<|begin|>", "<|end|>"]
TEXTS = [
    "The quick brown fox's 1234 jumps,  over\n\n the   lazy dog!\tAnd THEY'LL see: naïve café, it's 3.14",
    "def f(x):\n    return x**2  # \u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "Привет, мир — ¿qué?\r\n\r\n  \u0e20\u0e32\u0e29\u0e32",
    "a  b   c    d\n \n  e\u00a0f 🦊🦊 emoji 12,345.678 x²½",
    "plain <|end|> and <think> after",
]


def of_bytes(name: str, begins: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that splits as llama.cpp's ``name`` does, learnt from :data:`TEXTS`."""
    expressions, whole = SPLITS[name]
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    core = Tokenizer(BPE(ignore_merges=whole))
    core.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    core.add_tokens([AddedToken("<think>", normalized=False)])
    if begins:
        core.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=SPECIAL[0], eos_token=SPECIAL[1])


def of_pieces(prepend: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of pieces, as LLaMA 2 has it: those of a few words, the later ones merged later."""
    letters = sorted(set(chain(*TEXTS[:1])) - {" "} | {"▁"})
    words = [
        "▁t",
        "he",
        "the",
        "▁the",
        "▁▁",
        "ow",
        "▁b",
        "▁br",
        "▁brow",
        "qu",
        "ck",
        "▁qu",
        "ick",
        "▁quick",
        "ju",
        "mp",
        "mps",
        "▁▁▁▁",
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    known = {*words, *letters}
    merges = [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in known and word[cut:] in known
    ]
    core = Tokenizer(BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces = normalizers.Replace(" ", "▁")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prepend else spaces
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(token, normalized=False) for token in tokens[:3]])
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

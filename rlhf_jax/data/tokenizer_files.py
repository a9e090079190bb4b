"""A tokenizer's files, as released models have them.

A directory holds `tokenizer.json`, or GPT-2's pair of a vocabulary and its merges; beside it
`tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and `config.json` say
which of the tokens begin, end and pad a text, and `chat_template.jinja` how a chat is written. All
but the first may be missing. Nothing is downloaded and no code of the directory is run.
"""

import dataclasses
import json
import os
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

import tokenizers

from rlhf_jax.runtime.errors import InputError, reason
from rlhf_jax.runtime.files import read_if_there

TOKENIZER, CONFIG, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

# GPT-2's two files, by Hugging Face's names and by OpenAI's.
_BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
# What reads such a pair as GPT-2 does; other classes split the text in other ways first.
_BPE_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_SPECIAL = "special_tokens_map.json"
_OTHERS = (CONFIG, _SPECIAL, "added_tokens.json", GENERATION, CHAT_TEMPLATE)
FILES = (TOKENIZER, *_OTHERS)  # of a tokenizer's directory
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _is_token(value: Any) -> bool:
    """A token is written as its text, or as an object that has it."""
    if isinstance(value, dict):
        return isinstance(value.get("content"), str) and all(isinstance(value.get(name, True), bool) for name in _FLAGS)
    return isinstance(value, str)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list | dict) and all(map(_is_token, value.values() if isinstance(value, dict) else value))


def _are_templates(value: Any) -> bool:
    """One text, or several by name."""
    if isinstance(value, list):
        value = (
            {i: entry.get("template") for i, entry in enumerate(value)}
            if all(isinstance(e, dict) for e in value)
            else None
        )
    return isinstance(value, str) or isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


_FORMS = {  # of the fields that are read
    **dict.fromkeys(_NAMED, _is_token),
    "added_tokens_decoder": lambda value: (
        isinstance(value, dict) and all(map(str.isdecimal, value)) and _are_tokens(value)
    ),
    "additional_special_tokens": _are_tokens,
    "extra_special_tokens": _are_tokens,
    "chat_template": _are_templates,
    "vocab_size": lambda value: type(value) is int and value > 0,
}


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What the files say.

    Attributes:
        name: the file to name in messages.
        tokenizer: with the special tokens of all files marked as such.
        special: 'eos_token' -> '</s>', for those of bos, eos, pad and unk that the files name.
        end_ids: the tokens that end a generated text by generation_config.json, else config.json.
        chat_template: Jinja source, or None.
        model_vocab_size: config.json's, or None.
        texts: file name -> contents, of the files that belong to the tokenizer.
    """

    name: str
    tokenizer: tokenizers.Tokenizer
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    model_vocab_size: int | None = None
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read(path: str | os.PathLike) -> TokenizerFiles:
    """Reads a directory, or a tokenizer.json and what lies beside it.

    Raises:
        InputError: no tokenizer there, or a file that cannot be read or contradicts another one.
    """
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    config = _object(folder / CONFIG)
    if path.is_dir():
        path = _main_file(folder, config)
    texts, names = {}, {}
    if path.name in dict(_BPE_FILES):
        tokenizer, names = _byte_level(path, config), {"eos_token": "<|endoftext|>"}
    else:
        texts[TOKENIZER] = _text(path, "it must be a tokenizer.json")
        tokenizer = _from_json(path, texts[TOKENIZER])
        if path.name != TOKENIZER:  # what lies beside it may belong to another one
            return TokenizerFiles(str(path), tokenizer, texts=texts)

    special_map = {}
    if "added_tokens_decoder" not in config:  # what is as new as that says all of it in the config
        special_map = _object(folder / _SPECIAL)
    names |= {name: text for source in (config, special_map) for name in _NAMED if (text := _content(source.get(name)))}
    further = _object(folder / "added_tokens.json")
    if not all(type(i) is int and i >= 0 for i in further.values()):
        raise InputError(f"{folder / 'added_tokens.json'} must be an object of tokens and their ids")
    if TOKENIZER in texts:
        _check_vocabulary(tokenizer, path, folder / "vocab.json")
    _add_tokens(tokenizer, path, config, further, [*names.values(), *_further(special_map), *_further(config)])
    known = tokenizer.get_vocab()
    adds_bos = TOKENIZER not in texts and config.get("add_bos_token")  # a tokenizer.json says it itself
    for name in ("eos_token", "bos_token") if adds_bos else ("eos_token",):
        if (text := names.get(name)) and text not in known:
            raise InputError(
                f"{folder / CONFIG}: {name} is {text!r}, which {path.name} does not have; "
                "take all files from one release"
            )
    if adds_bos and (bos := names.get("bos_token")):
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    model, generation = _object(folder / "config.json"), _object(folder / GENERATION)
    model = model if "model_type" in model else {}  # a run's directory has a config.json of its own
    for name in _OTHERS:
        if (folder / name).is_file():
            texts[name] = _text(folder / name, "it must be text")
    return TokenizerFiles(
        name=str(path),
        tokenizer=tokenizer,
        special={name: text for name, text in names.items() if text in known},
        end_ids=_ids(generation, folder / GENERATION) or _ids(model, folder / "config.json"),
        chat_template=texts.get(CHAT_TEMPLATE) or _default_template(config.get("chat_template")),
        model_vocab_size=model.get("vocab_size"),
        texts=texts,
    )


def _check_vocabulary(tokenizer: tokenizers.Tokenizer, path: pathlib.Path, other: pathlib.Path) -> None:
    """Raises InputError where a vocab.json of tokens and ids gives a token another id than the tokenizer.json."""
    listed = read_if_there(other) or {}
    for text, i in listed.items():
        if type(i) is int and (found := tokenizer.token_to_id(text)) not in (i, None):
            raise InputError(
                f"{path}: the token {text!r} has the id {found}, but {other.name} gives it {i}; take all files "
                "from one release"
            )


def _main_file(folder: pathlib.Path, config: Mapping) -> pathlib.Path:
    if (folder / TOKENIZER).is_file():
        return folder / TOKENIZER
    for names in _BPE_FILES:
        if all((folder / name).is_file() for name in names):
            if config.get("tokenizer_class") not in _BPE_CLASSES:
                raise InputError(
                    f"{folder}: {' and '.join(names)} of a {config['tokenizer_class']} do not say how it splits a "
                    f"text; write a tokenizer.json once, where transformers is installed: {_conversion(folder)}"
                )
            return folder / names[0]
    models = sorted(path.name for path in folder.glob("*.model"))
    if models:
        raise InputError(
            f"{folder} has only {models[0]} (SentencePiece), which is not read here; write a tokenizer.json once, "
            f"where transformers and sentencepiece are installed: {_conversion(folder)}"
        )
    raise InputError(
        f"{folder} has no {TOKENIZER}, and no {' and '.join(_BPE_FILES[0])}; give the directory of a tokenizer"
    )


def _conversion(folder: pathlib.Path) -> str:
    return (
        f'python -c "from transformers import AutoTokenizer as T; '
        f"T.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def _from_json(path: pathlib.Path, text: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizers.Tokenizer.from_str(tokenizer.to_str())  # it takes merges of tokens that it does not write
    except Exception as error:  # The library raises plain Exception.
        raise InputError(f"{path}: not a tokenizer.json of the tokenizers library ({error})") from None
    return tokenizer


def _byte_level(path: pathlib.Path, config: Mapping) -> tokenizers.Tokenizer:
    """GPT-2's: its vocabulary at `path`, the merges beside it."""
    merges = path.with_name(dict(_BPE_FILES)[path.name])
    try:
        bpe = tokenizers.models.BPE(*tokenizers.models.BPE.read_file(str(path), str(merges)))
    except Exception as error:
        raise InputError(f"{path} and {merges.name} are not a BPE vocabulary and its merges ({error})") from None
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=bool(config.get("add_prefix_space", False))
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _add_tokens(
    tokenizer: tokenizers.Tokenizer, path: pathlib.Path, config: Mapping, further: Mapping[str, int], special: list[str]
) -> None:
    """Adds the tokens that stand in a file of their own, and marks the special ones as such."""
    declared = {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    declared = {i: text for text, i in further.items()} | declared
    for i, token in sorted(declared.items()):
        token = token if isinstance(token, dict) else {"content": token, "special": token in special}
        added = tokenizers.AddedToken(**{name: token[name] for name in ("content", *_FLAGS) if name in token})
        if tokenizer.token_to_id(added.content) is None:
            tokenizer.add_tokens([added])
        if (found := tokenizer.token_to_id(added.content)) != i:
            raise InputError(
                f"{path}: the token {added.content!r} has the id {found}, but {CONFIG} or "
                f"added_tokens.json gives it {i}; take all files from one release"
            )
        special = special + [added.content] * added.special
    marked = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens([text for text in dict.fromkeys(special) if text in known and text not in marked])


def _further(source: Mapping) -> list[str]:
    """The special tokens that have no role of their own."""
    lists = [source.get(name) or () for name in ("additional_special_tokens", "extra_special_tokens")]
    return [
        text
        for tokens in lists
        for token in (tokens.values() if isinstance(tokens, dict) else tokens)
        if (text := _content(token))
    ]


def _content(token: Any) -> str | None:
    """A token is written as its text, or as an object that has it."""
    return token.get("content") if isinstance(token, dict) else token


def _ids(source: Mapping, path: pathlib.Path) -> tuple[int, ...]:
    ids = source.get("eos_token_id")
    ids = tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,)
    if any(type(i) is not int or i < 0 for i in ids):
        raise InputError(
            f"{path}: 'eos_token_id' is {source['eos_token_id']!r}; it must be the id of a token, or a list of ids"
        )
    return ids


def _default_template(template: Any) -> str | None:
    """A tokenizer may have several named chat templates."""
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    return template.get("default") if isinstance(template, dict) else template


def _object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file."""
    value = read_if_there(path)
    for name, fits in _FORMS.items():
        if value and value.get(name) is not None and not fits(value[name]):
            raise InputError(
                f"{path}: '{name}' is {reprlib.repr(value[name])}; copy the file again from the model's release"
            )
    return value or {}


def _text(path: pathlib.Path, wanted: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the tokenizer cannot be read ({reason(error)}); {wanted}") from None


def described(special: Mapping[str, str]) -> str:
    """A tokenizer_config.json for a tokenizer that has none."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return json.dumps(config | dict(special), indent=2, ensure_ascii=False) + "\n"


def padding_right(texts: Mapping[str, str], token: str) -> dict[str, str]:
    """Returns the files, file name -> contents, of a tokenizer that pads with `token` and on the right."""
    changed = {CONFIG: {"pad_token": token, "padding_side": "right"}, _SPECIAL: {"pad_token": token}}
    return dict(texts) | {
        name: json.dumps(json.loads(texts[name]) | fields, indent=2, ensure_ascii=False) + "\n"
        for name, fields in changed.items()
        if name in texts
    }

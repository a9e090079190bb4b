"""Directories like those of released models, made here: tokenizers of each kind, and chat templates as published."""

import json

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "Once upon a time, there was a girl named Lily.",
    "What is 12 + 30?  It's forty-two!",
    "고양이가 앉았다",
    "naïve café\n\n\tdef f(x): return x",
    "the the the cat sat on the mat",
] * 4
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
FALLBACK = [f"<0x{i:02X}>" for i in range(256)]


def _trained(tokenizer, special, **options):
    ascii_ = ["▁", *map(chr, range(33, 127))]
    options = dict(vocab_size=600, special_tokens=special, show_progress=False, initial_alphabet=ascii_) | options
    trainer = trainers.WordPieceTrainer if isinstance(tokenizer.model, models.WordPiece) else trainers.BpeTrainer
    tokenizer.train_from_iterator(TEXTS, trainer(**options))
    spec = json.loads(tokenizer.to_str())  # bytes are plain tokens of the vocabulary
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in FALLBACK]
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def bytes_by_letter():
    """GPT-2's table: byte -> the letter that stands for it in a byte-level token."""
    letters = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in letters]
    return {byte: chr(byte) for byte in letters} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _begin(tokenizer, bos):
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _split(behavior="isolated"):
    by_regex = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior)
    return pre_tokenizers.Sequence([by_regex, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def qwen():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizers.NFC(), _split(), decoders.ByteLevel()
    tokenizer = _trained(tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], initial_alphabet=BYTES)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer, dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=None, add_bos_token=False)


def llama3():
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = _split(), decoders.ByteLevel()
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
    tokenizer = _trained(tokenizer, [f"<|{name}|>" for name in names], initial_alphabet=BYTES)
    return _begin(tokenizer, "<|begin_of_text|>"), dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def llama2():
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = _trained(tokenizer, ["<unk>", "<s>", "</s>"] + FALLBACK)
    return _begin(tokenizer, "<s>"), dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def mistral():
    """Metaspace, which puts its space before the first word alone."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = _trained(tokenizer, ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"])
    object_ = {
        "__type": "AddedToken",
        "content": "</s>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    return _begin(tokenizer, "<s>"), dict(bos_token="<s>", eos_token=object_, unk_token="<unk>", pad_token="</s>")


def gemma():
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = _trained(tokenizer, special + FALLBACK)
    return _begin(tokenizer, "<bos>"), dict(
        bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", add_bos_token=True
    )


def wordpiece():
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer = _trained(tokenizer, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer, dict(pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]")


KINDS = {make.__name__: make for make in (qwen, llama3, llama2, mistral, gemma, wordpiece)}


def save(folder, kind, template=None, **files):
    """Writes a kind's tokenizer.json, tokenizer_config.json (with a template, if given) and other JSON files by name."""
    tokenizer, config = KINDS[kind]()
    tokenizer.save(str(folder / "tokenizer.json"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"} | ({"chat_template": template} if template else {})
    for name, content in {"tokenizer_config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen 2.5: a system turn if there is none, and tools as JSON.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Qwen 3 puts an empty thought before the last reply.
QWEN3 = """{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {%- set thought = '<think>\\n\\n</think>\\n\\n' if message.role == 'assistant' and loop.index0 > ns.last else '' %}
    {{- '<|im_start|>' + message.role + '\\n' + thought + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# Qwen 2.5 and Hermes: tools, their calls and their results.
TOOLS = """{%- if tools %}<|im_start|>system
# Tools{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Llama 3.1: the day, where the program knows it.
LLAMA3 = """{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set date = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set date = "26 Jul 2024" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date + "\\n\\n<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{% generation %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endgeneration %}
{% else %}{% continue %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# template -> (kind of tokenizer, token that ends a reply)
TEMPLATES = {
    "chatml": (CHATML, "qwen", "<|im_end|>"),
    "qwen": (QWEN, "qwen", "<|im_end|>"),
    "qwen3": (QWEN3, "qwen", "<|im_end|>"),
    "llama2": (LLAMA2, "llama2", "</s>"),
    "llama3": (LLAMA3, "llama3", "<|eot_id|>"),
    "zephyr": (ZEPHYR, "mistral", "</s>"),
    "gemma": (GEMMA, "gemma", "<end_of_turn>"),
}

"""Chat templates as published, and what transformers' `apply_chat_template` makes of them.

    pip install -r requirements.txt && python templates.py

Reads templates/NAME.jinja and writes templates/NAME.json: a list of cases, each with the messages, tools and variables
given, and the text, or null where transformers refuses them.
"""

import json
import pathlib

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

FOLDER = pathlib.Path(__file__).parent / "templates"

# Spellings of bos and eos, which templates write.
TOKENS = {
    "phi-4": ("<|endoftext|>", "<|im_end|>"),
    "phi-4-mini": ("<|endoftext|>", "<|endoftext|>"),
    "phi-3.5-mini": ("<s>", "<|endoftext|>"),
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "llama-3": ("<|begin_of_text|>", "<|eot_id|>"),
    "llama-3.1": ("<|begin_of_text|>", "<|eot_id|>"),
    "qwen2.5": (None, "<|im_end|>"),
}


def says(role, content, **more):
    return {"role": role, "content": content, **more}


def calls(content, *functions):
    return says(
        "assistant",
        content,
        tool_calls=[
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in functions
        ],
    )


ODD = "  two spaces, a tab\t, \"quotes\", 'apostrophes', \\ and é 中文 😀 </s>\n\n<b>&amp;</b>\u00a0\u2028{{ x }} {% y %}  "
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a \"place\": <now> & 'then' é 😀",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"enum": [1, 2.5, 1e20, 1e-7, None, True]}},
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {}}}

CONVERSATIONS = {
    "one turn": [says("user", "Hi!")],
    "system": [says("system", "Be brief."), says("user", "Hi!")],
    "turns": [
        says("system", "Be brief."),
        says("user", "Hi!"),
        says("assistant", "Hello."),
        says("user", "And now?"),
        says("assistant", "Still here."),
        says("user", "Good."),
    ],
    "answer last": [says("user", "Hi!"), says("assistant", "Hello.")],
    "empty system": [says("system", ""), says("user", "Hi!")],
    "empty content": [says("user", ""), says("assistant", ""), says("user", "")],
    "odd content": [says("system", ODD), says("user", ODD), says("assistant", ODD), says("user", "\n")],
    "late system": [says("user", "Hi!"), says("system", "Be brief."), says("user", "Well?")],
    "other role": [says("user", "Hi!"), says("critic", "Bad."), says("user", "Well?")],
    "null content": [says("user", None)],
    "tool turns": [
        says("user", "Weather in Rome?"),
        calls("", ("weather", {"place": "Rome", "days": 2, "unit": None, "é": [1.0, {"a": True}]})),
        says("tool", "{\"degrees\": 21}"),
        says("assistant", "21 degrees."),
    ],
    "two calls": [
        says("system", "Use tools."),
        says("user", "Weather and time?"),
        calls("Let me see.", ("weather", {"place": "Rome"}), ("clock", {})),
        says("tool", "rain"),
        says("tool", "noon"),
    ],
    "tools in message": [says("system", "Use tools.", tools=json.dumps([WEATHER])), says("user", "Hi!")],
}

# Conversation, tools, variables.
CASES = [(name, None, {}) for name in CONVERSATIONS] + [
    ("one turn", [WEATHER], {}),
    ("system", [WEATHER, CLOCK], {}),
    ("tool turns", [WEATHER, CLOCK], {}),
    ("two calls", [WEATHER, CLOCK], {}),
    ("system", [WEATHER], {"tools_in_user_message": False, "date_string": "01 Feb 2026"}),
    ("tool turns", None, {"builtin_tools": ["weather", "code_interpreter"]}),
]


def cases_of(name):
    bos, eos = TOKENS[name]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=bos, eos_token=eos)
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    for conversation, tools, variables in CASES:
        messages = CONVERSATIONS[conversation]
        for prompt in (True, False):
            try:
                text = tokenizer.apply_chat_template(
                    messages, tools=tools, add_generation_prompt=prompt, tokenize=False, **variables
                )
            except Exception as error:
                print(f"{name}, {conversation}: {type(error).__name__}: {error}")
                text = None
            yield {
                "name": conversation,
                "messages": messages,
                "tools": tools,
                "variables": variables,
                "add_generation_prompt": prompt,
                "text": text,
            }


if __name__ == "__main__":
    for name, (bos, eos) in TOKENS.items():
        golden = {"bos": bos, "eos": eos, "cases": list(cases_of(name))}
        (FOLDER / f"{name}.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")

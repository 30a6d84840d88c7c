"""Writes golden.json: what transformers' Jinja environment makes of these templates (pip install jinja2).

The environment is set up as transformers.utils.chat_template_utils does it.
"""

import json
import pathlib

from jinja2 import Environment
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message):
    raise TemplateError(message)


def environment() -> Environment:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def says(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a \"place\" – <now> & 'here'\\\n\t\u0007 é 😀 \u2028",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"enum": [1, 2.0, 0.1, 1e16, 1e-5, -3]}},
            "required": ["place"],
            "additionalProperties": False,
            "default": None,
            "empty": {},
            "none": [],
        },
    },
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"place": "Köln", "days": 1e300}}},
        {"type": "function", "function": {"name": "weather", "arguments": {}}},
    ],
}

CONVERSATIONS = {
    "one turn": says(("user", "Hello")),
    "system": says(("system", "Be brief."), ("user", "Hello")),
    "several turns": says(("user", "Hi"), ("assistant", "Hello!\n"), ("user", "  What is 2 < 3?\n\n")),
    "empty content": says(("system", ""), ("user", ""), ("assistant", "")),
    "strange text": says(("user", "{{ 7 * 7 }} {% raw %} é 😀 \u200b\t'\"\\ </s>")),
    "thoughts": says(("user", "2+2?"), ("assistant", "<think>\nhm\n</think>\n\n4"), ("user", "Sure?")),
}


def main():
    env = environment()
    cases = []
    for path in sorted(HERE.glob("*.jinja")):
        template = env.from_string(path.read_text(encoding="utf-8"))
        inputs = [(name, messages, None) for name, messages in CONVERSATIONS.items()]
        if path.stem == "tools":
            messages = [*says(("user", "Weather?")), CALL, *says(("tool", " sunny\r\n"))]
            inputs.append(("tools", messages, [TOOL]))
        for name, messages, tools in inputs:
            for prompt in [False, True]:
                text = template.render(
                    messages=messages,
                    tools=tools,
                    documents=None,
                    add_generation_prompt=prompt,
                    today="26 Jul 2026",
                    bos_token="<|endoftext|>",
                    eos_token="<|im_end|>",
                )
                cases.append(
                    {
                        "template": path.stem,
                        "case": name,
                        "messages": messages,
                        "tools": tools or [],
                        "add_generation_prompt": prompt,
                        "text": text,
                    }
                )
    text = json.dumps(cases, ensure_ascii=False, indent=1)
    (HERE / "golden.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

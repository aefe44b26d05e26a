"""The fields of messages that a template reads."""

import pytest

from lectern_data.chats.chat_template import ChatTemplate


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("{% for m in messages %}{{ m.role + m['content'] }}{% endfor %}", "role content"),
        (
            "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% endif %}"
            "{% for one in rest %}{% for c in one.get('tool_calls') %}{{ c.name }}{% endfor %}"
            "{% if 'id' in one %}{{ one.content.strip() }}{% endif %}{% endfor %}",
            "role get tool_calls id content",
        ),
        (
            "{% for m in messages[::-1] %}{% set last = m %}{{ last.reasoning }}{% endfor %}",
            "reasoning reasoning_content thinking",
        ),
        ("{% for m in messages %}{{ m | tojson }}{% endfor %}", None),
        (
            "{% macro say(m) %}{{ m.x }}{% endmacro %}"
            "{% for m in messages %}{{ say(m) }}{% endfor %}",
            None,
        ),
        ("{% for m in messages %}{% for k, v in m.items() %}{{ v }}{% endfor %}{% endfor %}", None),
        ("{% for m in messages %}{% for k in ['a'] %}{{ m[k] }}{% endfor %}{% endfor %}", None),
        ("{{ messages | tojson }}", None),
        ("{% set ns = namespace(all=messages) %}{% for m in ns.all %}{{ m.x }}{% endfor %}", None),
    ],
)
def test_fields_are_those_of_messages_and_of_nothing_else(source: str, fields: str | None) -> None:
    found = ChatTemplate(source, {}).message_fields
    assert found == (None if fields is None else frozenset(fields.split()))

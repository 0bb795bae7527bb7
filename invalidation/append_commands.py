"""From grouped records to what Redis is sent: one byte stream of commands for each node.

For each group `APPEND key payload`, and behind it, where its key's life is to be extended, `EXPIRE
key seconds`, each as an array of three bulk strings (RESP2, which RESP3 servers read as well).
Keys: `namespace:{TAG}:FINGERPRINT` of a state, where TAG is base64url of its token, and
`namespace:{iBUCKET}:INDEX:GENERATION` of the label index. The slot of a key is CRC-16 of its tag
modulo 16,384, and says which node it is on.
Rule: routing changes nothing but where bytes go, so a batch can be routed again after nodes moved.
"""

from __future__ import annotations

from typing import Final

from freshscore.features.compiled import kernel
from freshscore.features.memory import i64, move, put_i64, put_u8, u8, u16
from freshscore.invalidation import append_plan as p
from freshscore.invalidation.append_kernels import group_width

TAG_CHARACTERS: Final = 22
FINGERPRINT_CHARACTERS: Final = 11


@kernel
def _n_digits(value: int) -> int:
    n = 1
    while value > 9:
        n += 1
        value //= 10
    return n


@kernel
def _put_decimal(out: int, value: int) -> int:
    """Write a number that is not negative; where it ends."""
    n = _n_digits(value)
    for i in range(n):
        put_u8(out + n - 1 - i, 48 + value % 10)
        value //= 10
    return out + n


@kernel
def _put_break(out: int) -> int:
    put_u8(out, 13)
    put_u8(out + 1, 10)
    return out + 2


@kernel
def _put_tag(out: int, token: int, alphabet: int) -> int:
    """Write base64url of the 16 bytes of a token; where it ends."""
    for at in range(token, token + 15, 3):
        bits = (u8(at) << 16) | (u8(at + 1) << 8) | u8(at + 2)
        put_u8(out, u8(alphabet + (bits >> 18)))
        put_u8(out + 1, u8(alphabet + ((bits >> 12) & 63)))
        put_u8(out + 2, u8(alphabet + ((bits >> 6) & 63)))
        put_u8(out + 3, u8(alphabet + (bits & 63)))
        out += 4
    last = u8(token + 15)
    put_u8(out, u8(alphabet + (last >> 2)))
    put_u8(out + 1, u8(alphabet + ((last & 3) << 4)))
    return out + 2


@kernel
def _put_key(plan: int, group: int) -> int:
    """Write the key of a group into the plan's room for one; its length."""
    key = i64(plan + p.KEY)
    n_name = i64(plan + p.NAMESPACE_LENGTH)
    entity = i64(group + p.ENTITY)
    move(key, i64(plan + p.NAMESPACE), n_name)
    out = key + n_name
    put_u8(out, 58)
    put_u8(out + 1, 123)
    out += 2
    if entity == i64(plan + p.N_ENTITIES):
        put_u8(out, 105)
        out = _put_decimal(out + 1, i64(group + p.LOW))
    else:
        out = _put_tag(out, group + p.LOW, i64(plan + p.ALPHABET))
    put_u8(out, 125)
    put_u8(out + 1, 58)
    out += 2
    if entity == i64(plan + p.N_ENTITIES):
        move(out, i64(plan + p.INDEX_NAME), p.INDEX_NAME_CHARACTERS)
        out += p.INDEX_NAME_CHARACTERS
        put_u8(out, 58)
        return _put_decimal(out + 1, i64(group + p.HIGH)) - key
    move(out, i64(plan + p.LAYOUTS + p.LAYOUT * entity + 8), FINGERPRINT_CHARACTERS)
    return out + FINGERPRINT_CHARACTERS - key


@kernel
def _key_length(plan: int, group: int) -> int:
    """Bytes of the key of a group."""
    n = i64(plan + p.NAMESPACE_LENGTH) + 4
    if i64(group + p.ENTITY) == i64(plan + p.N_ENTITIES):
        n += 2 + p.INDEX_NAME_CHARACTERS
        return n + _n_digits(i64(group + p.LOW)) + _n_digits(i64(group + p.HIGH))
    return n + TAG_CHARACTERS + FINGERPRINT_CHARACTERS


@kernel
def _slot(plan: int) -> int:
    """The slot of the key that was written: of its tag, between the braces."""
    crc = 0
    table = i64(plan + p.CRC)
    at = i64(plan + p.KEY) + i64(plan + p.NAMESPACE_LENGTH) + 2
    while u8(at) != 125:
        crc = ((crc << 8) & 0xFFFF) ^ u16(table + 2 * (((crc >> 8) ^ u8(at)) & 0xFF))
        at += 1
    return crc & (p.N_SLOTS - 1)


@kernel
def _command_bytes(n_key: int, n_value: int) -> int:
    """Bytes of a command: its beginning, the key and the value, each behind its length."""
    return p.COMMAND_BYTES + _n_digits(n_key) + n_key + _n_digits(n_value) + n_value + 9


@kernel
def _put_command(out: int, begin: int, key: int, n_key: int, value: int, n_value: int) -> int:
    """Write a command; where it ends."""
    move(out, begin, p.COMMAND_BYTES)
    out = _put_break(_put_decimal(out + p.COMMAND_BYTES, n_key))
    move(out, key, n_key)
    out = _put_break(out + n_key)
    put_u8(out, 36)
    out = _put_break(_put_decimal(out + 1, n_value))
    move(out, value, n_value)
    return _put_break(out + n_value)


@kernel
def _life(plan: int, group: int) -> int:
    """Position in the plan of the text of a key's life."""
    is_index = i64(group + p.ENTITY) == i64(plan + p.N_ENTITIES)
    return plan + (p.INDEX_LIFE if is_index else p.LIFE)


@kernel
def _payload(plan: int, group: int) -> int:
    """Bytes of a group's records."""
    return i64(group + p.COUNT) * group_width(plan, i64(group + p.ENTITY))


@kernel(nogil=True)
def route_groups(plan: int, batch: int) -> int:
    """Find the node of each group, and how many bytes and replies each node has."""
    sizes = i64(batch + p.SIZES)
    replies = i64(batch + p.REPLIES)
    for g in range(i64(batch + p.N_GROUPS)):
        group = i64(batch + p.GROUPS) + p.GROUP * g
        n_key = _key_length(plan, group)
        node = 0
        if i64(batch + p.N_NODES) > 1:
            _put_key(plan, group)
            node = u16(i64(batch + p.NODES) + 2 * _slot(plan))
        put_i64(group + p.NODE, node)
        put_i64(group + p.REPLY, i64(replies + 8 * node))
        size = _command_bytes(n_key, _payload(plan, group))
        n_replies = 1
        if i64(group + p.EXPIRES) != 0:
            size += _command_bytes(n_key, i64(_life(plan, group) + 8))
            n_replies = 2
        put_i64(sizes + 8 * node, i64(sizes + 8 * node) + size)
        put_i64(replies + 8 * node, i64(replies + 8 * node) + n_replies)
    return 0


@kernel(nogil=True)
def write_commands(plan: int, batch: int) -> int:
    """Write each node's commands into its buffer, in which there is room for them."""
    ends = i64(batch + p.SIZES)
    append = i64(plan + p.COMMANDS)
    key = i64(plan + p.KEY)
    for g in range(i64(batch + p.N_GROUPS)):
        group = i64(batch + p.GROUPS) + p.GROUP * g
        node = i64(group + p.NODE)
        out = i64(ends + 8 * node)
        n_key = _put_key(plan, group)
        payload = i64(batch + p.BODY) + i64(group + p.BODY_AT) + p.GROUP_HEAD
        out = _put_command(out, append, key, n_key, payload, _payload(plan, group))
        if i64(group + p.EXPIRES) != 0:
            life = _life(plan, group)
            begin = append + p.COMMAND_BYTES
            out = _put_command(out, begin, key, n_key, i64(life), i64(life + 8))
        put_i64(ends + 8 * node, out)
    return 0

"""The scripts that run inside Redis, where a step must not be half done.

PROGRESS  KEYS markers, progress; ARGV number of partitions that must report, the current topic ids
          joined by a comma, then triples of field ("m:TOPICID:PARTITION"), next offset, arrival
          still to come (ms): moves markers on, drops those of other topics, writes the summary.
BEGIN     KEYS markers, progress; ARGV epoch (16 hexadecimal digits), key id, complete since (ms),
          number of partitions, topic ids: gives a node its epoch, unless it has one.
KEEP      KEYS state, buckets; ARGV how the state begins, seconds to live, the most bytes of a
          bucket, then what is appended to each: answers the new lengths. 0: one would be longer;
          -1: the state begins otherwise by now, so that it will not be swapped. Neither does
          anything.
DROP      KEYS state, buckets; ARGV how the state begins: removes the buckets. 0: it begins
          otherwise by now, so that they may be about what it has folded since; nothing was done.
SWAP      KEYS state, and the bucket that was appended to last, if any; ARGV length and SHA-1 of the
          replaced prefix, what comes instead, seconds to live, least length of that bucket: swaps a
          compacted state in, keeping what was appended since. 0: something else is there by now.

All keys of a call have one hash tag, so it runs on any cluster; the largest work is one digest of
one state. Numbers are compared as numbers, which Lua keeps exactly up to 2^53.
Rule: they are loaded with each connection and called by digest; one that answers 0 or less changed
nothing, and what could fail comes first, for what a script has done stays done.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final


@dataclass(frozen=True)
class Script:
    """One script in Lua."""

    text: str

    @cached_property
    def digest(self) -> bytes:
        """The name under which Redis knows it: 40 hexadecimal digits."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest().encode()


# The summary: features/redis_progress.py says what its words are.
_SUMMARY: Final = """
local function bytes_of(hex)
  return (string.gsub(hex, '..', function(two) return string.char(tonumber(two, 16)) end))
end
local function summarise(markers, progress, partitions, topics)
  local known = {}
  for topic in string.gmatch(topics, '[^,]+') do known[topic] = true end
  local held, values, fields = redis.call('HGETALL', markers), {}, {}
  for i = 1, #held, 2 do
    local topic = string.match(held[i], '^m:([^:]+):%d+$')
    values[held[i]] = held[i + 1]
    if topic and known[topic] then
      fields[#fields + 1] = held[i]
    elseif topic then
      redis.call('HDEL', markers, held[i])
    end
  end
  table.sort(fields)
  local lowest, parts = nil, {}
  for i = 1, #fields do
    local topic, partition = string.match(fields[i], '^m:([^:]+):(%d+)$')
    local offset, arrival = string.match(values[fields[i]], '^(%d+) (%d+)$')
    arrival = tonumber(arrival)
    if not lowest or arrival < lowest then lowest = arrival end
    parts[i] = bytes_of(string.sub(redis.sha1hex(topic), 1, 16))
      .. struct.pack('<i8i8i8', tonumber(partition), tonumber(offset), arrival)
  end
  if not lowest or #fields < tonumber(partitions) then lowest = 0 end
  local since = tonumber(values['complete_since'] or '0')
  redis.call('SET', progress, bytes_of(values['epoch'])
    .. struct.pack('<i8i8i8', lowest, since, #fields) .. table.concat(parts))
end
"""

PROGRESS: Final = Script(
    _SUMMARY
    + """
if redis.call('HEXISTS', KEYS[1], 'epoch') == 0 then return 0 end
for i = 3, #ARGV, 3 do
  local offset, arrival = ARGV[i + 1], ARGV[i + 2]
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  if held then
    local old_offset, old_arrival = string.match(held, '^(%d+) (%d+)$')
    if tonumber(old_offset) > tonumber(offset) then offset = old_offset end
    if tonumber(old_arrival) > tonumber(arrival) then arrival = old_arrival end
  end
  redis.call('HSET', KEYS[1], ARGV[i], offset .. ' ' .. arrival)
end
summarise(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
return 1
"""
)

BEGIN: Final = Script(
    _SUMMARY
    + """
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'key_id', ARGV[2], 'complete_since', ARGV[3])
summarise(KEYS[1], KEYS[2], ARGV[4], ARGV[5])
return 1
"""
)

KEEP: Final = Script(
    """
local lengths = {}
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return -1 end
for i = 2, #KEYS do
  if redis.call('STRLEN', KEYS[i]) + #ARGV[i + 2] > tonumber(ARGV[3]) then return 0 end
end
for i = 2, #KEYS do
  lengths[i - 1] = redis.call('APPEND', KEYS[i], ARGV[i + 2])
  redis.call('EXPIRE', KEYS[i], ARGV[2])
end
return lengths
"""
)

DROP: Final = Script(
    """
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""
)

SWAP: Final = Script(
    """
local held, length = redis.call('GET', KEYS[1]), tonumber(ARGV[1])
if not held or #held < length then return 0 end
if redis.sha1hex(string.sub(held, 1, length)) ~= ARGV[2] then return 0 end
if KEYS[2] and redis.call('STRLEN', KEYS[2]) < tonumber(ARGV[5]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3] .. string.sub(held, length + 1), 'EX', ARGV[4])
return 1
"""
)

SCRIPTS: Final = (PROGRESS, BEGIN, KEEP, DROP, SWAP)

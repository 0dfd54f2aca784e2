-- Read frames from a history, up to a number of bytes but at least one, or the last alone.
--
-- KEYS  1 history   2 what has been seen of evictions
-- ARGV  1 id after which to read, empty for the last   2 bytes   3 run   4 1 if this server may evict keys
-- Returns the run as evicted.lua has it, Redis's time (ms), first id and last id of the history (empty if it has no
-- entry), 1 if this server wrote the last entry, time to live (ms), then id and frame of each.

local run = proven(KEYS[2], ARGV[3], 0, ARGV[4])
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last then
  return {run, now, '', '', 0, 0}
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local found = {run, now, first[1], last[1], last[2][1] == ARGV[3] and 1 or 0, redis.call('PTTL', KEYS[1])}
if ARGV[1] == '' then
  found[#found + 1] = last[1]
  found[#found + 1] = last[2][2]
  return found
end
local left = tonumber(ARGV[2])
local after = ARGV[1]
while left > 0 do
  local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 16)
  for _, entry in ipairs(entries) do
    after = entry[1]
    found[#found + 1] = after
    found[#found + 1] = entry[2][2]
    left = left - #entry[2][2]
    if left <= 0 then
      return found
    end
  end
  if #entries < 16 then
    return found
  end
end
return found

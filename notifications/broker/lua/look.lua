-- Return the ends of histories, without their frames.
--
-- KEYS  the histories   the last: what has been seen of evictions
-- ARGV  1 run   2 when this server had started (ms)   3 1 if it may evict keys
-- Returns both as evicted.lua has them, Redis's time (ms), then for each history: first id, last id, time to live (ms),
-- and 1 if this server wrote the last entry; all empty if it has no entry.

local run, started = proven(KEYS[#KEYS], ARGV[1], ARGV[2], ARGV[3])
local found = {run, started, now}
for number = 1, #KEYS - 1 do
  local key = KEYS[number]
  local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if last then
    found[#found + 1] = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1][1]
    found[#found + 1] = last[1]
    found[#found + 1] = redis.call('PTTL', key)
    found[#found + 1] = last[2][1] == ARGV[1] and 1 or 0
  else
    found[#found + 1] = ''
    found[#found + 1] = ''
    found[#found + 1] = 0
    found[#found + 1] = 0
  end
end
return found

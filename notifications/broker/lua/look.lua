-- Return the ends of histories, without their frames.
--
-- KEYS  the histories
-- ARGV  1 run   2 when this server had started (ms)
-- Returns both, Redis's time (ms), then for each history: first id, last id, time to live (ms), and 1 if this
-- server wrote the last entry; all empty if it has no entry.

local now = redis.call('TIME')
local found = {ARGV[1], ARGV[2], now[1] .. string.format('%03d', math.floor(now[2] / 1000))}
for _, key in ipairs(KEYS) do
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

-- Read the oldest entries of the inlet for the lease holder, or drop some if there are too many.
--
-- KEYS  1 lease   2 inlet
-- ARGV  1 the holder's token   2 entries that may wait   3 entries dropped at once   4 entries read at once
--       5 bytes after which to stop   6 bytes of an entry above which its fields are not returned
--       7 bytes that each field and value counts besides its own
-- Returns how many were dropped, how many wait, for how long the oldest has (ms); then, if none was dropped, for each
-- entry: id, bytes, and its fields and values, or an empty list if they are too large. Only -1 if the lease is not the
-- caller's.
--
-- One entry is fetched at a time, so no more than one that is huge is copied; XREAD would send all of them.

local call = redis.call

if call('HGET', KEYS[1], 'token') ~= ARGV[1] then
  return {-1}
end
local waiting = call('XLEN', KEYS[2])
if waiting > tonumber(ARGV[2]) then
  local keep = math.max(tonumber(ARGV[2]), waiting - tonumber(ARGV[3]))
  call('XTRIM', KEYS[2], 'MAXLEN', '=', keep)
  return {waiting - keep, keep, 0}
end
local found, from, left = {0, waiting, 0}, '-', tonumber(ARGV[5])
for number = 1, math.min(ARGV[4], waiting) do  -- behind the last there is none: its id may be the largest
  local entry = call('XRANGE', KEYS[2], from, '+', 'COUNT', 1)[1]
  if number == 1 then
    local now = call('TIME')
    found[3] = math.max(0, now[1] * 1000 + math.floor(now[2] / 1000) - string.match(entry[1], '^%d+'))
  end
  local bytes = 0
  for _, word in ipairs(entry[2]) do
    bytes = bytes + #word + ARGV[7]
  end
  found[#found + 1] = entry[1]
  found[#found + 1] = bytes
  found[#found + 1] = bytes <= tonumber(ARGV[6]) and entry[2] or {}
  from, left = '(' .. entry[1], left - bytes
  if left <= 0 then
    break
  end
end
return found

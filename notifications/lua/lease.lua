-- Take, renew or give back the lease of the listeners.
--
-- KEYS  1 lease, a hash: token, batch (the number of the last batch it stamped)
--       2 candidates, a hash: stand-by -> "<listening since> <last asked>" (µs)
-- ARGV  1 token   2 time to live (ms); 0 gives it back   3 the caller   4 1 if it has just begun to listen
--       5 how long a candidate that does not ask any more counts (ms)   6 how long the caller has listened (µs)
-- Returns 1 if the lease is now the caller's, otherwise 0.
--
-- A free lease goes to who has listened longest: who began when the holder had gone does not know what it left.

local holder = redis.call('HGET', KEYS[1], 'token')
if ARGV[2] == '0' then
  if holder == ARGV[1] then
    redis.call('DEL', KEYS[1])
  end
  return 0
end
if holder ~= ARGV[1] then
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local mine = redis.call('HGET', KEYS[2], ARGV[3])
  local since = ARGV[4] ~= '1' and mine and tonumber(string.match(mine, '^%d+')) or now - ARGV[6]
  -- In a pcall: a full Redis refuses it, and does without candidates.
  redis.pcall('HSET', KEYS[2], ARGV[3], string.format('%d %d', since, now))
  if holder then
    return 0
  end
  local candidates = redis.call('HGETALL', KEYS[2])
  for i = 1, #candidates, 2 do
    local others, last = string.match(candidates[i + 1], '^(%d+) (%d+)$')
    if math.abs(now - last) > ARGV[5] * 1000 then
      redis.call('HDEL', KEYS[2], candidates[i])
    elseif tonumber(others) < since then
      return 0
    end
  end
  redis.call('HSET', KEYS[1], 'token', ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1

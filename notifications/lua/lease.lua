-- Take, renew or give back the lease of the listeners.
--
-- KEYS  1 lease, a hash: token, batch (the number of the last batch it stamped)
-- ARGV  1 token   2 time to live (ms); 0 gives it back
-- Returns 1 if the lease is now the caller's, otherwise 0.

local holder = redis.call('HGET', KEYS[1], 'token')
if ARGV[2] == '0' then
  if holder == ARGV[1] then
    redis.call('DEL', KEYS[1])
  end
  return 0
end
if not holder then
  redis.call('HSET', KEYS[1], 'token', ARGV[1])
elseif holder ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1

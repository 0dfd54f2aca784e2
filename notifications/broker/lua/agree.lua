-- Say into how many shards a listener divides the topics, unless others say another number.
--
-- KEYS  1 the number in use
-- ARGV  1 the caller's number   2 time to live (ms); 0 if the caller stops, and nobody else has its number
-- Returns the number in use.

local number = redis.call('GET', KEYS[1])
if number and number ~= ARGV[1] then
  -- Redis's clock may have been set back: see lease.lua.
  if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[2]) and ARGV[2] ~= '0' then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  return number
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
elseif number then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  -- In a pcall: a full Redis refuses it, but then nobody takes a lease either.
  redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return ARGV[1]

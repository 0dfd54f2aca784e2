-- Take, renew or give back the lease of the listeners, or announce a candidate for it.
--
-- KEYS  1 lease, a hash: token, by (who has it), batch (the number of the last batch it stamped); or an empty token
--         and heir (who is to have it next, if subscribed since before "before", in µs)
--       2 candidates, a hash: listener -> "<subscribed since> <last asked>" (µs); of the holder for longer ago than 5
--       3 term: changes with each holder, and is deleted when messages go out without ids
-- ARGV  1 token; empty if the caller is announced   2 time to live (ms); 0 gives it back, -1 only announces the caller
--       3 the caller
--       4 1 if it has just subscribed   5 how long a candidate counts after it last asked (ms)
--       6 how long the caller has been subscribed (µs); -1 if it is not any more   7 a term that was never used
--       8 who is to have it next, if it is given back; or empty   9 for how long nobody else may take it then (ms)
--       10 for how long the caller has been handing over what it led (µs)
--       11 for how long who has subscribed is a newcomer (ms)   12 for how long others are remembered (ms)
-- Returns 1 if the lease is now the caller's, otherwise 0, and the term; an empty text if there is none.
--
-- A free lease goes to the stand-by subscribed longest: a newcomer has not seen what the dead holder left unstamped.
-- After a failover the new primary may know none of them; so each is announced before it subscribes there. Who gives
-- the lease back and stands by is one of them at once: it has received what the next holder may leave unstamped.
--
-- Who was paused does not count until it asks again, though it has missed nothing: it reads all of it when it wakes up.
-- So a newcomer, such as a holder that comes back after a gap, leaves a free lease for a moment to all who were here.
--
-- Redis expires keys by its wall clock. If that is set back, a lease would last longer by as much, and a
-- dead stand-by would keep others from it for as long. So nothing may have more time left than it can have
-- been given: a living listener renews its lease, and a dead one has one lifetime left, counted from when
-- the next one asks.

local holder = redis.call('HGET', KEYS[1], 'token')
local term = redis.call('GET', KEYS[3]) or ''
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local since = now - ARGV[6]
local function remember_holder()
  -- In a pcall, as below.
  redis.pcall('HSET', KEYS[2], ARGV[3], string.format('%d %d', since, now - ARGV[5] * 1000 - 1))
end
if ARGV[2] == '0' then
  if holder == ARGV[1] then
    redis.call('DEL', KEYS[1])
    -- In a pcall: if Redis refuses it, the lease is free.
    if ARGV[8] ~= '' then
      local before = string.format('%d', now - ARGV[10])
      if type(redis.pcall('HSET', KEYS[1], 'token', '', 'heir', ARGV[8], 'before', before)) ~= 'table' then
        redis.call('PEXPIRE', KEYS[1], ARGV[9])
      end
    end
  end
  if ARGV[6] == '-1' then
    -- A stand-by that stops says so, too: it must not keep others from a free lease.
    redis.call('HDEL', KEYS[2], ARGV[3])
  else
    redis.pcall('HSET', KEYS[2], ARGV[3], string.format('%d %d', since, now))
  end
  return {0, term}
end
-- A lease that waits for its heir has an empty token, as an announcement has.
if holder == ARGV[1] and holder ~= '' then
  if term == '' and type(redis.pcall('SET', KEYS[3], ARGV[7])) == 'table' then
    term = ARGV[7]
  end
  remember_holder()
else
  local mine = ARGV[4] ~= '1' and redis.call('HGET', KEYS[2], ARGV[3])
  if mine then
    -- A call that was delayed does not shorten that time.
    since = math.min(since, tonumber(string.match(mine, '^%d+')))
  end
  -- In a pcall: a full Redis refuses it, and then there are no candidates.
  redis.pcall('HSET', KEYS[2], ARGV[3], string.format('%d %d', since, now))
  local chosen = false
  if holder == '' and redis.call('HGET', KEYS[1], 'heir') == ARGV[3] then
    -- Who has subscribed since the handing over began may have missed what another stand-by knows.
    chosen = since <= tonumber(redis.call('HGET', KEYS[1], 'before'))
    redis.call('DEL', KEYS[1])
    holder = false
  end
  if ARGV[2] == '-1' then
    return {0, term}
  end
  if holder and redis.call('HGET', KEYS[1], 'by') == ARGV[3] then
    -- The caller has taken it and not heard so: with another token nobody uses it.
    redis.call('DEL', KEYS[1])
    holder = false
  end
  if holder then
    local left = redis.call('PTTL', KEYS[1])
    if left < 0 or left > tonumber(ARGV[2]) then
      redis.call('PEXPIRE', KEYS[1], ARGV[2])
    end
    return {0, term}
  end
  local candidates = chosen and {} or redis.call('HGETALL', KEYS[2])
  for i = 1, #candidates, 2 do
    local others, last = string.match(candidates[i + 1], '^(%d+) (%d+)$')
    others, last = tonumber(others), tonumber(last)
    if last > now then
      others, last = others - (last - now), now
      redis.pcall('HSET', KEYS[2], candidates[i], string.format('%d %d', others, last))
    end
    if now - last > ARGV[12] * 1000 then
      redis.call('HDEL', KEYS[2], candidates[i])
    elseif others < since and (now - last <= ARGV[5] * 1000 or now - since < ARGV[11] * 1000) then
      return {0, term}
    end
  end
  redis.call('HSET', KEYS[1], 'token', ARGV[1], 'by', ARGV[3])
  redis.call('SET', KEYS[3], ARGV[7])
  remember_holder()
  term = ARGV[7]
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {1, term}

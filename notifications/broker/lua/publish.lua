-- Stamp one message of publish_*, and publish it to the listeners and on the topic's own channel.
--
-- KEYS  1 history of the topic   2 the idempotency key, only when one was given
-- ARGV  1 run   2 size (0: no history)   3 ttl (ms)   4 head of the frame   5 tail of the frame
--       6 stamped channel   7 topic   8 the topic's own channel   9 ttl of the idempotency key (ms)
--       10 optional: "@" and when it was published (µs), for a message that is timed
-- Returns the id; empty without history.

if KEYS[2] then
  local earlier = call('GET', KEYS[2])
  if earlier then
    -- Redis expires keys by its wall clock: if that was set back, this one would live longer by as much.
    if call('PTTL', KEYS[2]) > tonumber(ARGV[9]) then
      call('PEXPIRE', KEYS[2], ARGV[9])
    end
    return earlier
  end
end
local id, frame = '', ARGV[5]
if ARGV[2] ~= '0' then
  id, frame = stamp(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
  if not id then
    return redis.error_reply(frame)
  end
  local run = ARGV[1] .. (ARGV[10] or '')
  call('PUBLISH', ARGV[6], 'p' .. #ARGV[7] .. ' ' .. id .. ' ' .. run .. ' ' .. ARGV[7] .. frame)
end
if KEYS[2] then
  call('SET', KEYS[2], id, 'PX', ARGV[9])
end
call('PUBLISH', ARGV[8], frame)
return id

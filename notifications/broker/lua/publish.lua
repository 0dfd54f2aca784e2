-- Stamp one message of publish_*, and publish it to the topic's group, or to the listeners, and on the topic's own
-- channel.
--
-- KEYS  1 history of the topic   2 marks of the buckets   3 the idempotency key, only when one was given
--       the last: the job of the topic (shares.lua), only with a version
-- ARGV  1 run   2 size (0: no history)   3 ttl (ms)   4 head of the frame; without history: all of _meta but its end
--       5 tail of the frame   6 PREFIX   7 topic
--       8 Redis channel of the topic's group; empty if listeners are to forward
--       9 offset of the topic's mark   10 how that begins
--       11 when it was published (µs), for a message that is timed   12 ttl of the idempotency key (ms)
--       13 the version of the job, if the message tells how it stands
-- Returns the id, which is empty without history; and with it Redis's error if it refused to publish to the group; or
-- an empty list, if a later version was published before.
--
-- What is rarely needed comes last and is left out: an argument takes Redis 0.1 µs.

local job = ARGV[13] and KEYS[#KEYS]
local once = KEYS[3] ~= job and KEYS[3]
if job then
  local version, earlier = string.match(call('HGET', job, 'told') or '', '^(%d+) (.*)$')
  version = tonumber(version)
  if not version then
    job = nil  -- Redis has lost it since it was reported: nobody else can tell this
  elseif version > tonumber(ARGV[13]) then
    return {}
  elseif version == tonumber(ARGV[13]) then
    return earlier
  end
end
if once then
  local earlier = call('GET', once)
  if earlier then
    -- Redis expires keys by its wall clock: if that was set back, this one would live longer by as much.
    if call('PTTL', once) > tonumber(ARGV[12]) then
      call('PEXPIRE', once, ARGV[12])
    end
    return earlier
  end
end
local topic, group, at, kept = ARGV[7], ARGV[8], ARGV[11] or '0', ARGV[2] ~= '0'
local id, frame, epoch, n, refusal = '', nil, nil, nil, nil
if kept then
  id, frame, epoch, n = stamp(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], KEYS[2], ARGV[9], ARGV[10])
  if not id then
    return redis.error_reply(frame)
  end
else
  frame = plain(ARGV[5])
end
-- Before anybody is sent the message: if Redis refuses, as when it is full, the caller calls again.
if once then
  call('SET', once, id, 'PX', ARGV[12])
end
if job then
  call('HSET', job, 'told', ARGV[13] .. ' ' .. id)
end
if group ~= '' then
  refusal = deliver(group, event(topic, frame, ARGV[1], epoch, n, at))
end
local delivered = group ~= '' and not refusal
if kept and not delivered then
  local run = at == '0' and ARGV[1] or ARGV[1] .. '@' .. at
  call('PUBLISH', stamped_channel(KEYS[2]), 'p' .. #topic .. ' ' .. id .. ' ' .. run .. ' ' .. topic .. frame)
elseif delivered and not kept then
  frame = ARGV[4] .. '}' .. ARGV[5]  -- with _meta: otherwise listeners would take it for another program's
end
call('PUBLISH', ARGV[6] .. topic, frame)
return refusal and {id, refusal} or id

-- Stamp raw messages for the lease holder, in their order, and publish them to their groups and to the listeners.
--
-- KEYS  1 lease   2 term of the lease   3 marks of the buckets   4... history of each message's topic
-- ARGV  1 run   2 stamped channel   3 the holder's token   4 number of the batch
--       5 when the first message was read (µs), if it is timed; otherwise 0
--       6... for each message: size (0: no history)   ttl (ms)   topic   head   tail
--            Redis channel of its group; empty if the holder is to forward it   offset of the topic's mark
--            how that begins   digest
-- Returns how many were stamped, Redis's last refusal to keep one, and its last refusal to publish one to its group,
-- or empty texts; instead of the number -1 if the lease is not the caller's, and -2 if this batch, or a later one, was
-- stamped before.
--
-- A message that Redis refuses to keep goes out without an id. On the stamped channel there is each message that is
-- still to be forwarded, and then one acknowledgement of all, by which every listener strikes them off.

local holder = call('HGET', KEYS[1], 'token')
if holder == ARGV[3] then
  local done = call('HGET', KEYS[1], 'batch')
  if done and tonumber(done) >= tonumber(ARGV[4]) then
    return {-2, '', ''}
  end
elseif holder or type(pcall_('HSET', KEYS[1], 'token', '')) ~= 'table' then
  -- Without a lease, continue only if the server refuses all writes: nobody else can have it either.
  if not holder then
    call('DEL', KEYS[1])
  end
  return {-1, '', ''}
end
local stamped, delivered, refusal, kept_out = 0, 0, nil, nil
local topics, ids, digests = {}, {}, {}
local run, timed, published = ARGV[1], ARGV[5], ARGV[5] == '0' and '' or '@' .. ARGV[5]
local at = 6
for i = 4, #KEYS do
  local size, topic, tail, group = ARGV[at], ARGV[at + 2], ARGV[at + 4], ARGV[at + 5]
  local id, frame, epoch, n
  if size ~= '0' then
    id, frame, epoch, n = stamp(KEYS[i], run, size, ARGV[at + 1], ARGV[at + 3], tail, KEYS[3], ARGV[at + 6], ARGV[at + 7])
  end
  if id then
    stamped = stamped + 1
  else
    refusal = frame or refusal
    frame = plain(tail)
  end
  local refused = group ~= '' and deliver(group, event(topic, frame, run, epoch, n, timed))
  kept_out = refused or kept_out
  if group == '' or refused then
    local road, stamp_of = id and 'r' or 'u', id and id .. ' ' .. run or '- -'
    call('PUBLISH', ARGV[2], road .. #topic .. ' ' .. stamp_of .. published .. ' ' .. topic .. frame)
  else
    delivered = delivered + 1
  end
  topics[#topics + 1], ids[#ids + 1], digests[#digests + 1] = topic, id or '', tonumber(ARGV[at + 8])
  timed, published = '0', ''
  at = at + 9
end
if refusal then
  -- No history shows what has just gone out, so a listener that did not receive it must not rely on the
  -- histories. A full Redis still deletes.
  pcall_('DEL', KEYS[2])
end
-- In a pcall: a full Redis refuses it, and what has been published must not be reported as failed.
pcall_('HSET', KEYS[1], 'batch', ARGV[4])
if #topics > 0 then
  local told = {ARGV[3], tonumber(ARGV[4]), delivered, topics, ids, digests}
  call('PUBLISH', ARGV[2], 'a' .. cmsgpack.pack(told))
end
return {stamped, refusal or '', kept_out or ''}

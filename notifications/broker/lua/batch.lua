-- Stamp raw messages for the lease holder, in their order.
--
-- KEYS  1 lease   2 term of the lease   3... history of each message's topic
-- ARGV  1 run   2 stamped channel   3 the holder's token   4 number of the batch
--       5... for each message: size (0: no history)   ttl (ms)   topic   head   tail
-- Returns how many were stamped, and Redis's last refusal or an empty text; instead of the number -1 if
-- the lease is not the caller's, and -2 if this batch, or a later one, was stamped before.
--
-- A message that Redis refuses to keep goes out without an id.

local holder = call('HGET', KEYS[1], 'token')
if holder == ARGV[3] then
  local done = call('HGET', KEYS[1], 'batch')
  if done and tonumber(done) >= tonumber(ARGV[4]) then
    return {-2, ''}
  end
elseif holder or type(pcall_('HSET', KEYS[1], 'token', '')) ~= 'table' then
  -- Without a lease, continue only if the server refuses all writes: nobody else can have it either.
  if not holder then
    call('DEL', KEYS[1])
  end
  return {-1, ''}
end
local stamped, refusal = 0, nil
local at = 5
for i = 3, #KEYS do
  local size, topic = ARGV[at], ARGV[at + 2]
  local id, frame
  if size ~= '0' then
    id, frame = stamp(KEYS[i], ARGV[1], size, ARGV[at + 1], ARGV[at + 3], ARGV[at + 4])
  end
  if id then
    stamped = stamped + 1
    call('PUBLISH', ARGV[2], 'r' .. #topic .. ' ' .. id .. ' ' .. ARGV[1] .. ' ' .. topic .. frame)
  else
    refusal = frame or refusal
    local tail = ARGV[at + 4]
    if string.sub(tail, 1, 1) == ',' then
      tail = string.sub(tail, 2)
    end
    call('PUBLISH', ARGV[2], 'u' .. #topic .. ' - - ' .. topic .. '{' .. tail)
  end
  at = at + 5
end
if refusal then
  -- No history shows what has just gone out, so a listener that did not receive it must not rely on the
  -- histories. A full Redis still deletes.
  pcall_('DEL', KEYS[2])
end
-- In a pcall: a full Redis refuses it, and what has been published must not be reported as failed.
pcall_('HSET', KEYS[1], 'batch', ARGV[4])
return {stamped, refusal or ''}

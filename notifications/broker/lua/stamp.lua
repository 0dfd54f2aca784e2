-- Shared by publish.lua and batch.lua: give a message its id, keep it in the topic's history, and deliver it.
--
-- The history of a topic is one stream. Each entry has the id <epoch>-<n> and one field, whose name is
-- the beginning of the run_id of the server that wrote it (streams store a name that repeats only once)
-- and whose value is the finished frame. Numbers below 1e14 turn into text exactly.

local call, pcall_ = redis.call, redis.pcall

-- Change the mark of a topic's bucket (history/changes.py), so that somebody looks at its history.
local function mark(marks, offset, name, id)
  local value = name .. string.sub('00000000000' .. id, -12)
  if type(pcall_('SETRANGE', marks, offset, value)) == 'table' then
    -- Another type, or no right to do this: the first mark says that the others do not show everything.
    pcall_('SET', marks, value)
  end
end

-- Returns the id, the frame, and the two numbers of the id; or nil and Redis's error.
local function stamp(key, run, size, ttl, head, tail, marks, offset, name)
  local last = pcall_('XREVRANGE', key, '+', '-', 'COUNT', 1)
  local entry = last[1]
  local id, epoch, n, old
  if entry then
    epoch, n = string.match(entry[1], '^(%d+)-(%d+)$')
    if entry[2][1] == run then
      n = n + 1
      id = epoch .. '-' .. n
    else
      -- Another server wrote it, which may have given out ids that this one never saw.
      old = epoch
    end
  elseif last.err then
    -- Not a stream: nothing else may use this key.
    pcall_('DEL', key)
  end
  for attempt = 1, 2 do
    if not id then
      local now = call('TIME')
      epoch, n = math.max(now[1] * 1000 + math.floor(now[2] / 1000), (old or 0) + 1), 1
      id = epoch .. '-1'
    end
    local frame = head .. id .. '"}' .. tail
    local added = pcall_('XADD', key, 'MAXLEN', '=', size, id, run, frame)
    if type(added) == 'string' then
      call('PEXPIRE', key, ttl)
      mark(marks, offset, name, id)
      return id, frame, epoch, n
    end
    local broken = string.find(added.err, 'equal or smaller', 1, true) or string.find(added.err, 'Invalid', 1, true)
    if attempt == 2 or not broken then
      return nil, added.err
    end
    -- Entries were deleted or added by hand, so the count cannot be trusted any more: start a new epoch.
    pcall_('DEL', key)
    old = tonumber(string.match(id, '^%d+'))
    if not old or old > 1e13 then
      old = 0
    end
    id = nil
  end
end

-- Publish to the channel-layer group of a topic. Returns nil, or why Redis refuses, as to an account without the right:
-- then a listener has to forward the message. On a cluster the channel may be one of sharded pub/sub, in the slot of the
-- topic's keys.
local function deliver(channel, message)
  local done = pcall_(string.find(channel, '/{notifications:', 1, true) and 'SPUBLISH' or 'PUBLISH', channel, message)
  return type(done) == 'table' and done.err or nil
end

-- Returns a message without an id as browsers receive it.
local function plain(tail)
  return '{' .. (string.sub(tail, 1, 1) == ',' and string.sub(tail, 2) or tail)
end

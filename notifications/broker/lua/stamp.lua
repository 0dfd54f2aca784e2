-- Shared by publish.lua and batch.lua: give a message its id and keep it in the topic's history.
--
-- The history of a topic is one stream. Each entry has the id <epoch>-<n> and one field, whose name is
-- the beginning of the run_id of the server that wrote it (streams store a name that repeats only once)
-- and whose value is the finished frame. Numbers below 1e14 turn into text exactly.

local call, pcall_ = redis.call, redis.pcall

-- Returns the id and the frame, or nil and Redis's error.
local function stamp(key, run, size, ttl, head, tail)
  local last = pcall_('XREVRANGE', key, '+', '-', 'COUNT', 1)
  local entry = last[1]
  local id, old
  if entry then
    local epoch, n = string.match(entry[1], '^(%d+)-(%d+)$')
    if entry[2][1] == run then
      id = epoch .. '-' .. n + 1
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
      id = math.max(now[1] * 1000 + math.floor(now[2] / 1000), (old or 0) + 1) .. '-1'
    end
    local frame = head .. id .. '"}' .. tail
    local added = pcall_('XADD', key, 'MAXLEN', '=', size, id, run, frame)
    if type(added) == 'string' then
      call('PEXPIRE', key, ttl)
      return id, frame
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

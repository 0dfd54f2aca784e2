-- Shared by look.lua and page.lua: what is still proven by a history that is not there.
--
-- A server that evicts keys may have had a message of that topic, and thrown it away. So each eviction makes its run
-- another one, and it counts as started no earlier than that was first seen. A message names the plain run, so that the
-- first of an epoch is compared with the history before it passes as the next.

local time = redis.call('TIME')
local now = time[1] .. string.format('%03d', math.floor(time[2] / 1000))

-- Returns the run, and since when (ms) nothing was lost; of a server that does not say what it has evicted, none and now.
local function proven(key, run, started, evicts)
  if evicts ~= '1' then
    return run, started
  end
  local stats = redis.pcall('INFO', 'stats')
  local evicted = type(stats) == 'string' and string.match(stats, 'evicted_keys:(%d+)')
  if not evicted then
    return '', now
  end
  local name = run .. ':' .. evicted
  if evicted == '0' then
    return name, started
  end
  local seen, noted = string.match(tostring(redis.pcall('GET', key)), '^(%S+) (%d+)$')
  if seen ~= name then
    noted = now
    redis.pcall('SET', key, name .. ' ' .. now)
  end
  return name, math.max(started, noted)
end

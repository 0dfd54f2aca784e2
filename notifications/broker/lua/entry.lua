-- Shared by inlet.lua and pass.lua: keep one entry of an inlet, and announce it.
--
-- ARGV  1 run   2 PREFIX   3 ttl of an idempotency key (ms)
--       and for each entry, from some place on: size (0: no history)   ttl (ms)   head   tail   topic
--       Redis channel of the topic's group; empty if listeners are to forward   offset of the topic's mark
--       how that begins
--
-- What a single message is, and how it is announced, is as in publish.lua.

local WORDS_OF_ENTRY = 8
local run, prefix, once_ttl = ARGV[1], ARGV[2], ARGV[3]
local kept_out = ''  -- Redis's last refusal to publish to a group

-- Return whether something was published under an idempotency key.
local function was_published(once)
  local earlier = pcall_('GET', once)
  if type(earlier) == 'table' and string.find(earlier.err, 'WRONGTYPE', 1, true) then
    call('DEL', once)  -- nothing else may use it, and the entry would keep all behind it waiting
  end
  if not call('GET', once) then
    return false
  end
  if call('PTTL', once) > tonumber(once_ttl) then
    call('PEXPIRE', once, once_ttl)
  end
  return true
end

-- Keep the entry that begins at ARGV[at], and return what announces it; or nil and why Redis refuses to keep it.
local function keep(at, history, once, marks)
  if once and was_published(once) then
    return function() end
  end
  local size, head, tail, topic, group = ARGV[at], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local message, frame, epoch, n = '', nil, nil, nil
  if size == '0' then
    frame = plain(tail)
  else
    message, frame, epoch, n =
      stamp(history, run, size, ARGV[at + 1], head, tail, marks, ARGV[at + 6], ARGV[at + 7])
    if not message then
      return nil, frame
    end
  end
  if once then
    call('SET', once, message, 'PX', once_ttl)
  end
  return function()
    local refusal = group ~= '' and deliver(group, event(topic, frame, run, epoch, n, '0'))
    kept_out = refusal or kept_out
    if group == '' or refusal then
      if size ~= '0' then
        call('PUBLISH', stamped_channel(marks), 'p' .. #topic .. ' ' .. message .. ' ' .. run .. ' ' .. topic .. frame)
      end
    elseif size == '0' then
      frame = head .. '}' .. tail
    end
    call('PUBLISH', prefix .. topic, frame)
  end
end

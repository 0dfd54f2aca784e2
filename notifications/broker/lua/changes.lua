-- Return the marks of the buckets.
--
-- KEYS  1 marks of the buckets
-- ARGV  1 run
-- Returns both; an empty text for marks that cannot be read, nothing if there are none.

local WIDTH = 16  -- bytes of a mark
local marks = redis.pcall('GET', KEYS[1])
if type(marks) == 'table' then
  return {ARGV[1], ''}
end
if not marks or string.sub(marks, 1, WIDTH) == string.rep('\0', WIDTH) then
  -- New marks: others may have been there and were lost, so the first mark tells these from them.
  local time = redis.call('TIME')
  local name = time[1] .. string.format('%06d', time[2])
  if type(redis.pcall('SETRANGE', KEYS[1], 0, name)) ~= 'table' then
    marks = name .. string.sub(marks or '', WIDTH + 1)
  end
end
return {ARGV[1], marks}

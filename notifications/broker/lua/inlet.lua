-- Publish entries of the inlet for the lease holder, in their order, and take them out of it.
--
-- KEYS  1 lease   2 inlet   3 entries that were refused   4 marks of the buckets
--       then for each entry that is published: history of its topic, and its idempotency key if it has one
-- ARGV  1 to 3 as in entry.lua   4 the holder's token   5 refused entries that are kept
--       6 bytes of a refused entry above which its fields are not kept   7 their largest number   8 bytes each counts
--       besides its own
--       then for each entry: id, and what is to become of it: "passed" (it was published in its own shard, pass.lua),
--       "refused" and the reason, or "published", 1 if it has an idempotency key, and its words in entry.lua
-- Returns how many were published, or had been, Redis's refusal to keep one, which ends the batch, Redis's last refusal
-- to publish one to its group, or empty texts, then the ids of those that were refused. Only -1 if the lease is not the
-- caller's.
--
-- An entry that is not in the inlet was dealt with before.

local lease, inlet, refused_key, marks = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if call('HGET', lease, 'token') ~= ARGV[4] then
  return {-1}
end
-- Whether Redis takes writes, before anybody is sent anything: this one changes nothing, but is refused by a Redis that
-- is full, cannot save or is a replica. After the first write of a script Redis does not ask whether it is full.
call('HSET', lease, 'token', ARGV[4])
call('XDEL', inlet, '0-0')  -- or what the account may not delete would be published again and again

-- Keep an entry that is refused; returns Redis's error if it does not.
local function set_aside(id, reason, words)
  local command = {'XADD', refused_key, 'MAXLEN', '=', ARGV[5], '*', 'id', id, 'reason', reason}
  local bytes = 0
  for _, word in ipairs(words) do
    bytes = bytes + #word + ARGV[8]
  end
  if #words <= tonumber(ARGV[7]) and bytes <= tonumber(ARGV[6]) then
    for _, word in ipairs(words) do
      command[#command + 1] = word
    end
  end
  local added = pcall_(unpack(command))
  local err = type(added) == 'table' and added.err or ''
  if string.find(err, 'WRONGTYPE', 1, true) or string.find(err, 'exhausted', 1, true) then
    call('DEL', refused_key)  -- nothing else may use it, nor choose the ids in it
    added = pcall_(unpack(command))
  end
  return type(added) == 'table' and added.err or nil
end

local published, refused, key, at = 0, {}, 5, 9
while at <= #ARGV do
  local id, fate = ARGV[at], ARGV[at + 1]
  local entry = call('XRANGE', inlet, id, id)[1]
  at = at + 2
  if fate == 'passed' then
    published = published + call('XDEL', inlet, id)
  elseif fate == 'refused' then
    if entry then
      local err = set_aside(id, ARGV[at], entry[2])
      if err then
        return {published, err, kept_out, unpack(refused)}
      end
      call('XDEL', inlet, id)
      refused[#refused + 1] = id
    end
    at = at + 1
  else
    local history, once = KEYS[key], ARGV[at] == '1' and KEYS[key + 1]
    key = key + (once and 2 or 1)
    if entry then
      local announce, err = keep(at + 1, history, once, marks)
      if not announce then
        return {published, err, kept_out, unpack(refused)}
      end
      call('XDEL', inlet, id)  -- before PUBLISH: if the account may not, this one is found in its history
      published = published + 1
      announce()
    end
    at = at + 1 + WORDS_OF_ENTRY
  end
end
return {published, '', kept_out, unpack(refused)}

-- Publish entries of another shard's inlet, in their order, each once. They are taken out of that inlet afterwards.
--
-- KEYS  1 marks of the buckets
--       then for each entry: the note that it was passed on, history of its topic, and its idempotency key if it has one
-- ARGV  1 to 3 as in entry.lua   4 ttl of a note (ms)
--       then for each entry: 1 if it has an idempotency key, and its words in entry.lua
-- Returns how many were published, or had been, Redis's refusal to keep the next, which ends the batch, and Redis's last
-- refusal to publish one to its group, or empty texts.

local published, key, at = 0, 2, 5
while at <= #ARGV do
  local note, history, once = KEYS[key], KEYS[key + 1], ARGV[at] == '1' and KEYS[key + 2]
  key = key + (once and 3 or 2)
  -- First of all, so that a Redis that is full, cannot save or is a replica refuses it before anybody is sent anything.
  if call('SET', note, '', 'NX', 'PX', ARGV[4]) then
    local announce, err = keep(at + 1, history, once, KEYS[1])
    if not announce then
      call('DEL', note)
      return {published, err, kept_out}
    end
    announce()
  end
  published = published + 1
  at = at + 1 + WORDS_OF_ENTRY
end
return {published, '', kept_out}

-- Return the marks of the buckets.
--
-- KEYS  1 marks of the buckets
-- ARGV  1 run
-- Returns both; an empty text for marks that cannot be read, nothing if there are none.

local marks = redis.pcall('GET', KEYS[1])
return {ARGV[1], type(marks) == 'table' and '' or marks}

-- Remember that the job of a topic is to be cancelled, unless the topic's latest message says that it is over: a click that
-- comes too late is not for the job that comes next.
--
-- KEYS  1 the request   2 history of the topic
-- ARGV  1 ttl (s)   2... the states in which a job is over

local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then
  local is_json, message = pcall(cjson.decode, last[2][2])
  local job = is_json and message.action == 'progress' and message.payload
  for at = 2, #ARGV do
    if type(job) == 'table' and job.state == ARGV[at] then
      return
    end
  end
end
redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])

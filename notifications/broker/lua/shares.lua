-- Note what one process reports of its share of a job, and say how the job stands: history/shares.py, in Redis.
--
-- KEYS  1 the job, a hash: "job" (what all have reported), "told" (<version> <id> of what was published last), and for
--         each share "p:<key>" (<done> <state> <attempt>)
--       2 the request to cancel the job
-- ARGV  1 run   2 how many shares there are   3 key of the share; empty for the job itself   4 1 if the others need it
--       5 who does it   6 its state   7 how much of it is done (millionths)   8 its error   9 1 if there is news
--       10 the version that tells what the caller has reported   11 time between two messages (ms)
--       12 silence after which a message is due (ms)   13 ttl (ms)   14 ttl after the end (ms)
-- Returns the fields of Standing, in their order.
--
-- It writes at the end, so that Redis refuses all of it or nothing. All numbers are whole and below 1e14.

local call, WHOLE = redis.call, 1000000
local key, run, name, state, attempt = KEYS[1], ARGV[1], ARGV[3], ARGV[6], ARGV[5]
local interval = tonumber(ARGV[11])
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local cancelled = call('GET', KEYS[2]) and 1 or 0
local packed = call('HGET', key, 'job')
local job = packed and cmsgpack.unpack(packed)
local told = string.match(call('HGET', key, 'told') or '', '^%d+ [%d-]*$') or '0 '

-- By bytes: Lua's own comparison depends on the locale of the server.
local function before(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then
      return a < b
    end
  end
  return #one < #other
end

local version, fresh = 0, not job
if (not job or job.run ~= run) and name == '' and ARGV[9] ~= '1' then
  return {'old', 0}  -- only a question
end
if job and job.run ~= run then
  if not before(job.run, run) then
    return {'old', 0}
  end
  call('DEL', key)
  version, fresh = job.version, true
end
if fresh then
  job = {
    run = run, of = tonumber(ARGV[2]), version = version, state = 'waiting', began = 0, gate = 0, parts = 0,
    ended = 0, failed = 0, done = 0, lost = 0, error = '',
  }
end

local last_told = tonumber(string.match(told, '^%d+'))
-- Redis may have lost the job, and then been told a version from before: what comes now is later.
job.version = math.max(job.version, last_told)

local function over()
  return job.state ~= 'waiting' and job.state ~= 'running'
end

local fields = {}

-- Note what is reported of a share; returns whether that changes anything.
local function count(part)
  local was, how, who = 0, '', ''
  if part then
    was, how, who = string.match(part, '^(%d+) (%a+) (.*)$')
    was = tonumber(was)
  end
  local done = tonumber(ARGV[7])
  if how == 'succeeded' or state == 'running' and (how == 'waiting' or how == 'failed') and who == attempt then
    return false
  end
  local began = state ~= 'waiting' and job.began == 0
  if began then
    job.began, job.state = now, 'running'
  end
  if state == 'waiting' then
    done = 0
  elseif state == 'succeeded' then
    done = WHOLE
  elseif how == 'running' or how == 'failed' and state == 'failed' then
    done = math.max(done, was)
  end
  if name ~= '' then
    if how == 'failed' then
      job.ended, job.failed, job.lost = job.ended - 1, job.failed - 1, job.lost - (WHOLE - was)
    end
    if state == 'succeeded' or state == 'failed' then
      job.ended = job.ended + 1
    end
    if state == 'failed' then
      job.lost = job.lost + (WHOLE - done)
    end
    job.done = job.done + done - was
    job.parts = job.parts + (part and 0 or 1)
    fields[#fields + 1] = 'p:' .. name
    fields[#fields + 1] = string.format('%d %s %s', done, state, attempt)
  end
  if state == 'failed' then
    job.error = job.failed > 0 and job.error or ARGV[8]
    job.failed = job.failed + 1
  elseif job.failed == 0 then
    job.error = ''
  end
  if state == 'cancelled' or name == '' and state ~= 'waiting' and state ~= 'running'
    or state == 'failed' and ARGV[4] == '1' then
    job.state = state
  elseif job.ended == job.of then
    job.state = job.failed > 0 and 'failed' or 'succeeded'
  end
  return began or name ~= '' and (was ~= done or how ~= state) or over()
end

local was_over = over()
local seen, turn, wait = tonumber(ARGV[10]), 0, 0
if not was_over then
  local part = name ~= '' and call('HGET', key, 'p:' .. name)
  if name ~= '' and not part and job.parts >= job.of then
    return {'many', cancelled}
  end
  local changed = count(part) or fresh
  local last = math.min(job.gate - interval, now)
  if changed or ARGV[9] == '1' or now - last >= tonumber(ARGV[12]) then
    job.version = job.version + 1
    seen = job.version
  end
end
if over() then
  turn = last_told < job.version and 1 or 0
  cancelled = job.state == 'cancelled' and 1 or 0
else
  local open = now >= job.gate or job.gate > now + interval
  if not open then
    wait = job.gate - now
  elseif last_told < seen then
    turn, job.gate = 1, now + interval
  end
end
if not was_over then
  if over() then
    call('DEL', key)  -- the shares: nobody asks for them any more
    fields = {}
  end
  call('HSET', key, 'job', cmsgpack.pack(job), 'told', told, unpack(fields))
  call('PEXPIRE', key, over() and ARGV[14] or ARGV[13])
  if over() then
    call('DEL', KEYS[2])
  end
end
local elapsed = job.began > 0 and math.max(0, now - job.began) or 0
return {
  'yes', cancelled, turn, wait, job.version, seen, last_told, job.state, job.of, job.ended, job.done, job.lost,
  elapsed, job.error,
}

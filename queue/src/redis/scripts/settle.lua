-- ARGV: time, key_ttl, then groups of settlements that differ in their jobs alone: mark of the lease,
-- verdict (ack, retry, release, reject), delay, reason, number of jobs, ids. Answers 1 for each that was held.
local key_ttl = tonumber(ARGV[2])
sweep()
local ids, groups = {}, {}
local told, acked, acked_jobs, news = {}, {}, {}, false
local nth = 3
while ARGV[nth] do
  local mark, verdict, delay, reason, n = unpack(ARGV, nth, nth + 4)
  groups[#groups + 1] = { mark, verdict, delay, reason, tonumber(n) }
  for at = nth + 5, nth + 4 + n do ids[#ids + 1] = ARGV[at] end
  nth = nth + 5 + n
end
local jobs = load_jobs(ids)
local by_id = {}

local function settle(id, job, verdict, delay, reason)
  if verdict == 'ack' then
    by_id[id] = false
    acked[#acked + 1], acked_jobs[#acked_jobs + 1] = id, job
    return
  end
  if verdict == 'reject' then
    record(job, now, reason)
    return bury(id, job, reason)
  end
  leave(id, job)
  job.o, news = nil, true
  if verdict == 'retry' then record(job, now, reason) else job.a = job.a - 1 end
  wait(id, job, verdict == 'retry' and now + tonumber(delay) or nil)
  save(id, job)
end

local at = 0
for _, group in ipairs(groups) do
  local mark, verdict, delay, reason, n = unpack(group)
  for _ = 1, n do
    at = at + 1
    local id = ids[at]
    local job = by_id[id]
    if job == nil then job = jobs[at]; by_id[id] = job end
    if not job then
      -- Sent again: it was carried out the first time.
      local last = remembered(redis.call('HGET', key('done'), id))
      told[at] = last == mark and 1 or 0
    elseif job.t ~= mark then
      told[at] = 0
    else
      told[at] = 1
      if job.o then settle(id, job, verdict, delay, reason) end
    end
  end
end
flush()
finish(acked, acked_jobs, key_ttl)
if news then tell_arrival() end
tell_answers(acked)
return told

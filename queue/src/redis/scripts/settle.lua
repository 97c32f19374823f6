-- ARGV: time, key_ttl, then per settlement: id, mark of the lease, verdict (ack, retry, release, reject),
-- delay, reason. Answers 1 for each that was held.
local key_ttl = tonumber(ARGV[2])
local ids, told, acked, acked_jobs, news = {}, {}, {}, {}, false
for nth = 3, #ARGV, 5 do ids[#ids + 1] = ARGV[nth] end
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

for nth, id in ipairs(ids) do
  local mark, verdict, delay, reason = unpack(ARGV, 5 * nth - 1, 5 * nth + 2)
  local job = by_id[id]
  if job == nil then job = jobs[nth]; by_id[id] = job end
  if not job then
    -- Sent again: it was carried out the first time.
    local last = remembered(redis.call('HGET', key('done'), id))
    told[nth] = last == mark and 1 or 0
  elseif job.t ~= mark then
    told[nth] = 0
  else
    told[nth] = 1
    if job.o then settle(id, job, verdict, delay, reason) end
  end
end
flush()
finish(acked, acked_jobs, key_ttl)
if news then tell_arrival() end
tell_answers(acked)
return told

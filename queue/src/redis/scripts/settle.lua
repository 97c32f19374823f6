-- ARGV: time, key_ttl, then groups of settlements that differ in their jobs alone: mark of the lease,
-- verdict (ack, retry, release, reject), delay, reason, kind of failure, number of jobs, ids. Answers 1 for
-- each that was held, 2 for each that was cancelled, else 0.
local key_ttl = tonumber(ARGV[2])
sweep()
local groups, marks = {}, {}
local told, acked, acked_jobs, news = {}, {}, {}, false
local nth, at = 3, 0
while ARGV[nth] do
  local mark, verdict, delay, reason, kind, n = unpack(ARGV, nth, nth + 5)
  groups[#groups + 1] = { mark, verdict, delay, reason, kind, tonumber(n), nth + 5 }
  marks[#marks + 1] = mark
  nth = nth + 6 + n
end
local loans = load_loans(marks)

-- Most jobs are acked out of their loan: nothing more need be known of them. The others are looked up.
local ids, places_of, groups_of = {}, {}, {}
for _, group in ipairs(groups) do
  local mark, verdict, _, _, _, n, before = unpack(group)
  local loan, job = loans[mark], { t = mark }
  for nth = before + 1, before + n do
    local id = ARGV[nth]
    at = at + 1
    if verdict == 'ack' and loan and loan.left[id] then
      loan.left[id] = nil
      acked[#acked + 1], acked_jobs[#acked_jobs + 1] = id, job
      told[at] = 1
    else
      ids[#ids + 1], places_of[#places_of + 1], groups_of[#groups_of + 1] = id, at, group
    end
  end
end
local jobs, by_id = load_jobs(ids), {}
for _, id in ipairs(acked) do by_id[id] = false end

local function settle(id, job, verdict, delay, reason, kind)
  if verdict == 'ack' then
    by_id[id] = false
    acked[#acked + 1], acked_jobs[#acked_jobs + 1] = id, job
    return
  end
  if verdict == 'reject' then
    record(job, now, reason)
    return bury(id, job, reason, kind)
  end
  leave(id, job)
  job.o, news = nil, true
  if verdict == 'retry' then record(job, now, reason) else job.a = job.a - 1 end
  wait(id, job, verdict == 'retry' and now + tonumber(delay) or nil)
  save(id, job)
end

for nth, id in ipairs(ids) do
  local mark, verdict, delay, reason, kind = unpack(groups_of[nth])
  local job, loan, at = by_id[id], loans[mark], places_of[nth]
  if job == nil then job = jobs[nth]; by_id[id] = job end
  if job and loan and loan.left[id] then single(loan, id, job) end
  if not job then
    -- Sent again: it was carried out the first time.
    local last = remembered(redis.call('HGET', key('done'), id))
    told[at] = last == mark and 1 or fate_of(id) == 'cancelled' and 2 or 0
  elseif job.t ~= mark then
    told[at] = 0
  else
    told[at] = 1
    if job.o then settle(id, job, verdict, delay, reason, kind) end
  end
end
for _, loan in pairs(loans) do reduce(loan) end
flush()
finish(acked, acked_jobs, key_ttl)
if news then tell_arrival() end
tell_answers(acked)
return told

-- ARGV: time, id. Reads only. Answers where the job is: waiting, delayed, running, dead, done or unknown;
-- or an empty text, where it may be one of those that plain producers wrote and nobody has read.
local id = ARGV[2]
local text = redis.call('HGET', key('life'), id)
if not text then
  if remembered(redis.call('HGET', key('done'), id)) then return 'done' end
  -- One that a plain producer wrote is named by its entry, unless it says otherwise.
  local entry = named_after(id)
  if entry and #redis.call('XRANGE', inbox, entry, entry) > 0 then return 'waiting' end
  return redis.call('XLEN', inbox) == 0 and 'unknown' or ''
end
local job = unpacked(text)
if job.w == 'Z' then return 'dead' end
if job.w == 'H' and job.u > now then return 'running' end
if job.w == 'L' and not redis.call('ZSCORE', key('line'), id) then
  -- On loan, which is not written down job by job.
  local marks = redis.call('ZRANGE', key('loan_ends'), '-inf', now, 'BYSCORE')
  for _, loan in pairs(load_loans(marks)) do
    if loan.left[id] then return 'waiting' end
  end
  return 'running'
end
if expired(job) then return has_ended(id) and 'done' or 'dead' end
if (job.w == 'D' or job.w == 'X') and job.u > now then return 'delayed' end
return 'waiting'

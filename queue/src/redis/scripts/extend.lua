-- ARGV: time, lease, then per receipt: id, mark of the lease. Answers 1 for each that is held, 2 for each that
-- was cancelled, else 0.
local ids, marks, told, by_id, done = {}, {}, {}, {}, {}
for nth = 3, #ARGV, 2 do ids[#ids + 1], marks[#marks + 1] = ARGV[nth], ARGV[nth + 1] end
local jobs, loans = load_jobs(ids), load_loans(marks)
for nth, id in ipairs(ids) do
  local job, loan = by_id[id] or jobs[nth], loans[marks[nth]]
  by_id[id] = job
  if loan and loan.left[id] then single(loan, id, job) end
  local is_held = job and job.o and job.t == marks[nth]
  told[nth] = is_held and 1 or fate_of(id) == 'cancelled' and 2 or 0
  if is_held and not done[id] then
    done[id] = true
    leave(id, job)
    job.u = now + tonumber(ARGV[2])
    enter(id, job, 'H')
    save(id, job)
  end
end
for _, loan in pairs(loans) do reduce(loan) end
flush()
return told

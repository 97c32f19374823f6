-- ARGV: time, lease, then per receipt: id, mark of the lease. Answers 1 for each that is held.
local ids, told, done = {}, {}, {}
for nth = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[nth] end
local jobs = load_jobs(ids)
for nth, id in ipairs(ids) do
  local job = jobs[nth]
  local is_held = job and job.o and job.t == ARGV[2 * nth + 2]
  told[nth] = is_held and 1 or 0
  if is_held and not done[id] then
    done[id] = true
    leave(id, job)
    job.u = now + tonumber(ARGV[2])
    enter(id, job, 'H')
    save(id, job)
  end
end
flush()
return told

-- ARGV: time, result_ttl, key_ttl, what to do (list, show, redrive, purge, old), then for list: the rank below
-- which to go on or empty, how many; for redrive and purge of all: `all`, the rank after which to go on,
-- the last rank or empty; for show, redrive and purge of some: `named`, ids; for old, which deletes the
-- oldest: of what age, whether to `leave` one whose body lies elsewhere, or to `take` it, and how many.
-- Answers {whether to ask again at once, letters or number, of old {number, jobs whose bodies lie elsewhere
-- and are of use to no other queue, how many were left}, rank to go on from or -1, last rank, replies that
-- are owed}.
local STEP = 500
local result_ttl, key_ttl, verb = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
if tidy(result_ttl, key_ttl, STEP) then return { 1, 0, -1, -1, owed } end

-- The first of these, and how many of the ids that were.
local function letters(ids)
  local jobs, found = load_jobs(ids), {}
  local texts_of = first_texts(ids)
  for nth, text in ipairs(texts_of) do
    local job = jobs[nth]
    if job and job.w == 'Z' then
      found[#found + 1] = {
        ids[nth], job.a or 0, job.e, job.d and 1 or 0, text, job.r, job.z, job.f or '', job.h or {},
      }
    end
  end
  return found, #texts_of
end

if verb == 'list' then
  local below = ARGV[5] == '' and '+inf' or '(' .. ARGV[5]
  local max = math.min(tonumber(ARGV[6]), 64)
  local ids = redis.call('ZRANGE', key('dead'), below, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, max)
  local found, n = letters(ids)
  local rest = n > 0 and (n < #ids or n == max) and redis.call('ZSCORE', key('dead'), ids[n])
  return { 0, found, tonumber(rest or -1), -1, owed }
end
if verb == 'show' then return { 0, (letters({ ARGV[6] })), -1, -1, owed } end

local function purge_old(age, elsewhere, most)
  local taken, referring, n_left = {}, {}, 0
  -- In the order in which they died, so that no more than a step is looked at.
  local oldest = redis.call('ZRANGE', key('dead'), 0, STEP - 1)
  for nth, job in ipairs(load_jobs(oldest)) do
    local id = oldest[nth]
    if not job or job.z > now - age or #taken == most then break end
    local is_referring = refers(headers_of(id, job))
    if is_referring and elsewhere == 'leave' then
      n_left = n_left + 1
    else
      taken[#taken + 1] = id
      if not leave_nothing(id) and is_referring then
        referring[#referring + 1] = referring_job(id, job)
      end
      forget(id, job)
    end
  end
  flush()
  tell_answers(taken)
  return { 0, { #taken, referring, n_left }, -1, -1, owed }
end
if verb == 'old' then return purge_old(tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])) end

local ids, rest, last = {}, -1, -1
if ARGV[5] == 'all' then
  -- What dies while the steps go on is not meant.
  last = tonumber(ARGV[7]) or tonumber(redis.call('HGET', key('meta'), 'deaths') or 0)
  local scores = redis.call('ZRANGE', key('dead'), '(' .. ARGV[6], whole(last), 'BYSCORE', 'LIMIT', 0, STEP, 'WITHSCORES')
  for nth = 1, #scores, 2 do ids[#ids + 1] = scores[nth] end
  if #ids == STEP then rest = tonumber(scores[#scores]) end
else
  local seen = {}
  for nth = 6, #ARGV do
    if not seen[ARGV[nth]] then seen[ARGV[nth]] = true; ids[#ids + 1] = ARGV[nth] end
  end
end

local taken, first = {}, nil
for nth, job in ipairs(load_jobs(ids)) do
  local id = ids[nth]
  if job and job.w == 'Z' then
    taken[#taken + 1] = id
    if verb == 'purge' then
      leave_nothing(id)
      forget(id, job)
    else
      leave(id, job)
      first = first or places(#ids)
      place(job, first + #taken - 1)
      job.a, job.t, job.r, job.z, job.f = nil, nil, nil, nil, nil
      -- Else the job would die again at once.
      if expired(job) then job.d = nil end
      leave_nothing(id)
      wait(id, job)
      save(id, job)
    end
  end
end
flush()
if #taken > 0 then
  if verb == 'purge' then tell_answers(taken) else tell_arrival() end
end
return { 0, #taken, rest, last, owed }

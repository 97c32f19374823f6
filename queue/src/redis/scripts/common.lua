-- What all scripts share. KEYS[1] is the stream that plain producers write to; every other key begins
-- with its name and shares its slot. KEYS[2] is one of these that is never there: see `Keys` in script.rs.
-- ARGV[1] is the time in milliseconds, empty for the server's own.
local inbox = KEYS[1]
local LANE = 2251799813685248 -- 2^51: places of one priority
local EPOCH = 1735689600000   -- 2025: a place is a moment since then, times 1024
local SLICE = 4000            -- arguments of one call

local time = redis.call('TIME')
local server_now = time[1] * 1000 + math.floor(time[2] / 1000)
local now = tonumber(ARGV[1]) or server_now

local function key(name) return inbox .. ':' .. name end

-- As text: a number that is handed to a command as it is takes the server several times longer. One
-- number often comes many times in a row.
local last_number, last_text
local function whole(number)
  if number ~= last_number then last_number, last_text = number, string.format('%d', number) end
  return last_text
end

-- Reads many fields of a hash.
local function fetch(name, fields)
  local values = {}
  for from = 1, #fields, SLICE do
    local part = redis.call('HMGET', key(name), unpack(fields, from, math.min(from + SLICE - 1, #fields)))
    for nth = 1, #part do values[from + nth - 1] = part[nth] end
  end
  return values
end

-- The life of a job: w where it is (L line, D delayed, X delayed beyond its deadline, H held, Z dead),
-- s its place with its priority, e when it was published, d its deadline, a attempts, t the last lease,
-- o who holds it, u when its lease or delay ends, k key, c cost, h history, r why, z when and f of what
-- kind of failure it died,
-- y true where it is older than what stands before it in its priority, q its headers where its body is
-- long: nobody has to read that for their sake.
local function unpacked(text)
  local w, s, e, d, a, t, o, u, k, c, h, r, z, y, q, f = cmsgpack.unpack(text)
  return {
    w = w, s = s, e = e, d = d, a = a, t = t, o = o, u = u, k = k, c = c, h = h, r = r, z = z, y = y,
    q = q, f = f,
  }
end

local function load_jobs(ids)
  local jobs = fetch('life', ids)
  for nth, text in ipairs(jobs) do jobs[nth] = text and unpacked(text) end
  return jobs
end

-- The texts of the first of these jobs: of all, or until they are so many bytes together, and of one at least.
-- The server answers nobody while it reads them, and who asked gives up a connection whose answer takes long. They
-- are read one by one: how long one is shows only when it is there.
local MOST_BYTES = 8388608
local function first_texts(ids)
  local texts, size = {}, 0
  for nth, id in ipairs(ids) do
    if size >= MOST_BYTES then break end
    local text = redis.call('HGET', key('jobs'), id)
    texts[nth] = text
    size = size + (text and #text or 0)
  end
  return texts
end

-- Changes are gathered, and carried out key by key: first what is taken away, so that a server whose
-- memory is full refuses new jobs only, and before anything was changed.
local drops, adds, sets = {}, {}, {}

local function gather(into, name, first, second)
  local list = into[name]
  if not list then list = {}; into[name] = list end
  list[#list + 1] = first
  if second then list[#list + 1] = second end
end
local function drop(name, member) gather(drops, name, member) end
local function add(name, score, member) gather(adds, name, score, member) end
local function set(name, field, value) gather(sets, name, field, value) end

local SORTED = {
  line = true, ages = true, delayed = true, doomed = true, leased = true, deadlines = true,
  answered = true, dead = true, seen = true, done_ends = true, result_ends = true, loan_ends = true,
}

local function carry_out(command, lists)
  for name, list in pairs(lists) do
    local verb = command or (SORTED[name] and 'ZREM' or 'HDEL')
    for from = 1, #list, SLICE do
      redis.call(verb, key(name), unpack(list, from, math.min(from + SLICE - 1, #list)))
    end
  end
end

local function note(name) return tonumber(redis.call('HGET', key('meta'), name) or 0) end

-- Says again that the keys are a queue, and of which layout, where a server has lost that with all else: who
-- opens the queue would be told that there is none. That needs room, and may need something done before it.
local function mark_layout(first)
  if redis.call('HGET', key('meta'), 'layout') then return end
  if first then first() end
  redis.call('HSET', key('meta'), 'layout', LAYOUT)
end

-- What is remembered for a while goes with the last of it, also where nobody comes to sweep.
local function keep(name, moment)
  redis.call('PEXPIRE', key(name), whole(math.max(moment - now, 1)))
end

-- The same for what gets more from time to time, each for a while of its own.
local function keep_all(noted, names, moment)
  local last = math.max(note(noted), moment)
  redis.call('HSET', key('meta'), noted, whole(last))
  for _, name in ipairs(names) do keep(name, last) end
end

local cost_change, n_deaths = 0, nil

local function flush()
  carry_out(nil, drops)
  if n_deaths then set('meta', 'deaths', whole(n_deaths)) end
  carry_out('HSET', sets)
  carry_out('ZADD', adds)
  if cost_change ~= 0 then redis.call('HINCRBY', key('meta'), 'cost', whole(cost_change)) end
  drops, adds, sets, cost_change, n_deaths = {}, {}, {}, 0, nil
end

local function packed(job)
  -- Most jobs have no more than this, and each value costs time.
  if not (job.k or job.c or job.h or job.r or job.y or job.q) then
    if not (job.d or job.a or job.t or job.o or job.u) then return cmsgpack.pack(job.w, job.s, job.e) end
    return cmsgpack.pack(job.w, job.s, job.e, job.d, job.a, job.t, job.o, job.u)
  end
  return cmsgpack.pack(
    job.w, job.s, job.e, job.d, job.a, job.t, job.o, job.u, job.k, job.c, job.h, job.r, job.z,
    job.y, job.q, job.f
  )
end

local function save(id, job) set('life', id, packed(job)) end

-- Jobs that are handed out together, each for the first time and with nothing that asks for more, are on
-- one loan: what became of them is not written until they come back one by one. A loan has the mark of the
-- lease, when it ends, who holds it, and the jobs; `left` says which of these are still in it.
local MOST_ON_LOAN = 128

local function lend(mark, ends, holder, ids)
  set('loans', mark, whole(ends) .. ' ' .. table.concat(ids, ' ') .. '\n' .. holder)
  add('loan_ends', whole(ends), mark)
end

local function load_loans(marks)
  local loans = {}
  for nth, text in ipairs(fetch('loans', marks)) do
    if text then
      local ends, listed, holder = string.match(text, '^(%d+) ([^\n]*)\n(.*)$')
      local ids, left = {}, {}
      for id in string.gmatch(listed, '%S+') do ids[#ids + 1] = id; left[id] = true end
      loans[marks[nth]] = { mark = marks[nth], ends = tonumber(ends), holder = holder, ids = ids, left = left }
    end
  end
  return loans
end

-- Takes a job out of its loan: it is held by itself from now on.
local function single(loan, id, job)
  loan.left[id] = nil
  job.w, job.a, job.t, job.o, job.u = 'H', 1, loan.mark, loan.holder, loan.ends
end

-- Writes down what is left of a loan.
local function reduce(loan)
  local ids = {}
  for _, id in ipairs(loan.ids) do
    if loan.left[id] then ids[#ids + 1] = id end
  end
  if #ids == #loan.ids then return end
  -- Also where it is added again: what is taken away comes first, and needs no room.
  drop('loan_ends', loan.mark)
  if #ids == 0 then drop('loans', loan.mark) else lend(loan.mark, loan.ends, loan.holder, ids) end
end

local function record(job, at, what)
  local history = job.h or {}
  history[#history + 1] = { job.a or 0, at, what }
  job.h = history
end

-- The holder of the last lease, if it never settled, is taken for crashed.
local function record_crash(job)
  if job.o then record(job, job.u, 'lease expired, held by ' .. job.o) end
end

local function expired(job) return job.d and job.d <= now end

-- The outcome of a result, unless it is forgotten, and in which part of the results it is: `fates` has
-- outcome, when it is forgotten, and the part.
local function fate(text)
  if not text then return end
  local outcome, expires, part = string.match(text, '^(%l+) (%d+) (%d+)$')
  return tonumber(expires) > now and outcome or nil, 'results:' .. part
end

local function fate_of(id) return fate(redis.call('HGET', key('fates'), id)) end

-- Whether what is stored instead of an answer says that the job has gone on to another queue: a failure of
-- attempt 0 whose whole reason it is. A reason that only speaks of that may have come from anywhere.
local function has_gone_on(id, outcome, part)
  local result = outcome == 'failed' and redis.call('HGET', key(part), id)
  return result and string.find(result, '^failed 0 %S+ %S*\nebb%-moved%-to: [%w._-]+$') ~= nil
end

-- The attempt that a result is of, 0 for none.
local function attempt_of(id)
  local outcome, part = fate_of(id)
  local result = outcome and redis.call('HGET', key(part), id)
  return tonumber(string.match(result or '', '^%l+ (%d+) ') or 0)
end

-- Nothing takes the place of these: an answer, and that the job was cancelled.
local function is_final(outcome) return outcome == 'completed' or outcome == 'cancelled' end

local function has_ended(id) return is_final((fate_of(id))) end

-- Takes a job out of wherever it is.
local function leave(id, job)
  local where = job.w
  if where == 'L' then
    drop('line', id)
    if job.y then drop('ages', id) end
  elseif where == 'D' then drop('delayed', id)
  elseif where == 'X' then drop('doomed', id)
  elseif where == 'H' then drop('leased', id)
  elseif where == 'Z' then drop('dead', id) end
  if job.c and (where == 'L' or where == 'H') then cost_change = cost_change - job.c end
  if job.d and where ~= 'H' and where ~= 'Z' then drop('deadlines', id); drop('answered', id) end
end

local function enter(id, job, where)
  job.w = where
  if where == 'L' then
    add('line', whole(job.s), id)
    if job.y then add('ages', whole(job.e), id) end
  elseif where == 'D' then add('delayed', whole(job.u), id)
  elseif where == 'X' then add('doomed', whole(job.d), id)
  elseif where == 'H' then add('leased', whole(job.u), id) end
  if job.c and (where == 'L' or where == 'H') then cost_change = cost_change + job.c end
  if job.d and where ~= 'H' then add(has_ended(id) and 'answered' or 'deadlines', whole(job.d), id) end
end

-- In line at once, or when it is due.
local function wait(id, job, due)
  if due and due > now then
    job.u = due
    enter(id, job, job.d and job.d <= due and 'X' or 'D')
  else
    job.u = nil
    enter(id, job, 'L')
  end
end

local function bury(id, job, reason, kind)
  leave(id, job)
  job.w, job.r, job.z, job.f, job.o, job.u = 'Z', reason, now, kind, nil, nil
  n_deaths = (n_deaths or note('deaths')) + 1
  add('dead', whole(n_deaths), id)
  save(id, job)
end

-- Instead of the last lease, of a job that was cancelled before its entry was found.
local MARKED = 'marked'

-- What is remembered of a job that is done: its last lease, how long, and its key.
local function remembered(text)
  local what, expires, name = string.match(text or '', '^(%S*) (%d+) ?(.*)$')
  if what and tonumber(expires) > now then return what, name end
end

local function forget(id, job)
  leave(id, job)
  drop('life', id); drop('jobs', id)
  if job.k then drop('keys', job.k) end
end

-- Jobs that are done. Those of one call are swept together: their ids are one member of `done_ends`.
local function finish(ids, jobs, ttl)
  if #ids == 0 then return end
  local expires = ' ' .. whole(now + ttl)
  local last_job, text
  for nth, id in ipairs(ids) do
    local job = jobs[nth]
    forget(id, job)
    if job ~= last_job then
      last_job, text = job, (job.t or '') .. expires .. (job.k and ' ' .. job.k or '')
    end
    set('done', id, text)
    if job.k then set('done_keys', job.k, id .. expires) end
  end
  add('done_ends', whole(now + ttl), table.concat(ids, ' '))
  flush()
  keep_all('done', { 'done', 'done_keys', 'done_ends' }, now + ttl)
end

-- Members of a sorted set whose time is over, as the ids in them.
local function over(name, limit)
  local ids = {}
  for _, member in ipairs(redis.call('ZRANGE', key(name), '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)) do
    drop(name, member)
    for id in string.gmatch(member, '%S+') do ids[#ids + 1] = id end
  end
  return ids
end

-- Sweeps what is remembered no longer.
local function sweep()
  local ids = over('done_ends', 4)
  for nth, text in ipairs(fetch('done', ids)) do
    local name = string.match(text or '', '^%S* %d+ (.+)$')
    if not remembered(text) then drop('done', ids[nth]) end
    if name and not remembered(redis.call('HGET', key('done_keys'), name)) then drop('done_keys', name) end
  end
  ids = over('result_ends', 4)
  for nth, text in ipairs(fetch('fates', ids)) do
    if not fate(text) then drop('fates', ids[nth]) end
  end
  flush()
end

-- Whether anybody may have sent pieces of an answer.
local has_pieces
local function any_pieces()
  if has_pieces == nil then has_pieces = note('pieces') > now end
  return has_pieces
end

-- The latest attempt that sent pieces, 0 for none, and what is noted of it.
local function latest_pieces(id)
  if not any_pieces() then return 0, {} end
  local found = redis.call('HMGET', key('chunks:' .. id), 'attempt', 'expires')
  return tonumber(found[2] or 0) > now and tonumber(found[1]) or 0, found
end

-- Why a result may not be stored beside what is there, which may be pieces of a later attempt.
local function refused(id, attempt, outcome, before, ttl)
  if is_final(before) then return 'duplicate' end
  local name, latest, found = key('chunks:' .. id), latest_pieces(id)
  if attempt < latest then return 'stale' end
  if before and not is_final(outcome) then return 'duplicate' end
  if not found[1] then return end
  if latest == 0 or outcome ~= 'completed' or attempt > latest then
    redis.call('DEL', name)
  else
    redis.call('HSET', name, 'expires', whole(now + ttl))
    redis.call('PEXPIRE', name, whole(math.max(ttl, 1)))
  end
end

-- An answered job is no longer one that nobody answers.
local function spare(ids)
  if #ids == 0 or redis.call('EXISTS', key('deadlines')) == 0 then return end
  for _, id in ipairs(ids) do
    local deadline = redis.call('ZSCORE', key('deadlines'), id)
    if deadline then
      redis.call('ZREM', key('deadlines'), id)
      redis.call('ZADD', key('answered'), deadline, id)
    end
  end
end

-- A part of the results is a share of their time, and a minute at most, since the
-- server does nothing else while it forgets one.
local PARTS, LONGEST_PART = 16, 60000

-- Results to offer, as columns: the server is faster with these than with a table for each.
local function results_of(ids, attempts, outcomes, texts)
  return { ids = ids, attempts = attempts, outcomes = outcomes, texts = texts }
end

-- Offers results. Says of each whether it is `stored`, `duplicate` or `stale`, and which are stored. They
-- are of one part, which the server forgets as a whole.
local function answer(results, ttl)
  local ids, attempts, outcomes, texts = results.ids, results.attempts, results.outcomes, results.texts
  local told, stored, ended_now, seen = {}, {}, {}, {}
  local slice = math.min(math.max(math.ceil(ttl / PARTS), 1000), LONGEST_PART)
  local forgotten = math.ceil((now + ttl) / slice) * slice
  local name, rest = 'results:' .. whole(forgotten), ' ' .. whole(now + ttl) .. ' ' .. whole(forgotten)
  local fates = {
    completed = 'completed' .. rest, failed = 'failed' .. rest, cancelled = 'cancelled' .. rest,
  }
  local is_simple, n_stored = not any_pieces(), 0
  local new_fates, new_results = {}, {}
  for nth, text in ipairs(fetch('fates', ids)) do
    local id, outcome = ids[nth], outcomes[nth]
    local before, part, why = seen[id], nil, nil
    if text then
      local earlier
      earlier, part = fate(text)
      before = before or earlier
    end
    if before or not is_simple then why = refused(id, attempts[nth], outcome, before, ttl) end
    told[nth] = why or 'stored'
    if not why then
      seen[id] = outcome
      n_stored = n_stored + 1
      stored[n_stored] = id
      if is_final(outcome) then ended_now[#ended_now + 1] = id end
      if part and part ~= name then drop(part, id) end
      new_fates[2 * n_stored - 1], new_fates[2 * n_stored] = id, fates[outcome]
      new_results[2 * n_stored - 1], new_results[2 * n_stored] = id, texts[nth]
    end
  end
  if n_stored > 0 then
    sets.fates, sets[name] = new_fates, new_results
    add('result_ends', whole(now + ttl), table.concat(stored, ' '))
    flush()
    keep(name, forgotten)
    keep_all('fates', { 'fates', 'result_ends' }, now + ttl)
    spare(ended_now)
  end
  return told, stored
end

-- One more result for jobs that failed, and that nobody has: pieces of an attempt that gave its job back
-- are void, whatever number they bear.
local function add_failure(results, id, attempt, reason, kind)
  local nth = #results.ids + 1
  attempt = math.max(attempt, (latest_pieces(id)))
  results.ids[nth], results.attempts[nth], results.outcomes[nth] = id, attempt, 'failed'
  results.texts[nth] = 'failed ' .. whole(attempt) .. ' ' .. whole(now) .. ' ' .. kind .. '\n' .. reason
end

-- Replies that the caller is to send, of jobs that ended here: id, stored result, and headers.
local owed = {}

-- The headers of a job. Where they are not beside its life, its body is short, or was published by an
-- older version; jobs are read one by one all the same.
local function headers_of(id, job)
  return job.q or string.match(redis.call('HGET', key('jobs'), id) or '', '^[^\n]*')
end

-- Whether the body of a job with these headers lies elsewhere: the name of a field, and no value.
local function refers(headers) return string.find(headers, '"body_ref":', 1, true) end

-- Forgets what the attempts of a job left behind, but for an answer and for the record that it has gone on;
-- says whether it has.
local function leave_nothing(id)
  local outcome, part = fate_of(id)
  local is_elsewhere = has_gone_on(id, outcome, part)
  if not is_final(outcome) and not is_elsewhere then
    if any_pieces() then redis.call('DEL', key('chunks:' .. id)) end
    if part then drop(part, id); drop('fates', id) end
  end
  return is_elsewhere
end

-- A job whose body lies elsewhere, for whoever deletes that.
local function referring_job(id, job)
  return { id, job.a or 0, job.e, job.d and 1 or 0, redis.call('HGET', key('jobs'), id) }
end

-- Notes that a job is owed a reply, if it asked for one and has a result of this outcome.
local function owe(id, job, wanted)
  local headers = headers_of(id, job)
  if not string.find(headers, '"reply_to"', 1, true) then return end
  local outcome, part = fate_of(id)
  local result = outcome == wanted and redis.call('HGET', key(part), id)
  if result then owed[#owed + 1] = { id, result, headers } end
end

-- Stores failures of jobs that nobody answers for. A worker that was lost may have stored another before,
-- and not have told it.
local function fail(failures, jobs, ttl)
  answer(failures, ttl)
  for nth, id in ipairs(failures.ids) do owe(id, jobs[nth], 'failed') end
end

local function tell_arrival() redis.call('PUBLISH', key('arrivals'), '') end
local function tell_answers(ids)
  if #ids > 0 then redis.call('PUBLISH', key('answers'), table.concat(ids, ' ')) end
end

-- When an entry of the inbox was written. Producers may choose ids that are no moments, or none of ours,
-- and from then on those that the server chooses are none either.
local function written(entry)
  return math.min(math.max(tonumber(string.match(entry, '^%d+')), EPOCH), server_now)
end

-- The first entries of the inbox up to this one, as many as that at most. The server reads them whole, and
-- answers nobody meanwhile, so that there are fewer where they are long: page by page, each of no more than
-- have room if they are as long as the longest so far.
local HEAVY, PAGE_OF_ENTRIES = 1048576, 16
local function first_entries(most, final)
  local entries, from, size, longest, room = {}, '-', 0, 0, 1
  while #entries < most and size < HEAVY do
    local asked = math.min(room, most - #entries)
    local page = redis.call('XRANGE', inbox, from, final, 'COUNT', asked)
    for _, entry in ipairs(page) do
      local length = 0
      for _, word in ipairs(entry[2]) do length = length + #word end
      size, longest = size + length, math.max(longest, length)
      entries[#entries + 1] = entry
      from = '(' .. entry[1]
    end
    if #page < asked then break end
    room = math.min(math.max(math.floor((HEAVY - size) / math.max(longest, 1)), 1), PAGE_OF_ENTRIES)
  end
  return entries
end

-- The entry of the inbox that this job is named after, if a stream can have such a one: of two numbers of 64
-- bits. Anybody may ask for any id, and the server raises an error over others.
local LARGEST = '18446744073709551615'
local function named_after(id)
  local function fits(digits) return #digits < #LARGEST or (#digits == #LARGEST and digits <= LARGEST) end
  local first, second = string.match(id, '^redis%-(%d+)%-(%d+)$')
  if first and fits(first) and fits(second) then return first .. '-' .. second end
end

-- The first entries of the inbox without their bodies, each with the moment at which it was written.
local function strangers(most)
  local entries = first_entries(most, '+')
  for _, entry in ipairs(entries) do
    for field = 1, #entry[2], 2 do
      if entry[2][field] == 'body' then entry[2][field + 1] = '' end
    end
    entry[3] = written(entry[1])
  end
  return entries
end

-- 0 high, 1 normal, 2 low. Older versions gave entries with such ids places beyond all three.
local function lane_of(job) return math.min(math.floor(job.s / LANE), 2) end

-- The places of a priority, as the ends of a range.
local function lane_ends(lane)
  return whole(lane * LANE), lane == 2 and '+inf' or whole((lane + 1) * LANE - 1)
end

-- Places behind all that was published before.
local function places(n)
  local first = math.max(note('place'), (server_now - EPOCH) * 1024) + 1
  set('meta', 'place', whole(first + n - 1))
  return first
end

local newest = {}

-- Gives a job its place. In each priority jobs stand by age but for those that are marked: so the oldest is
-- at its head or among these, and the others need no order by age of their own.
local function place(job, at)
  local lane = lane_of(job)
  local noted = 'newest' .. lane
  job.s = lane * LANE + math.min(at, LANE - 1)
  local last = newest[noted] or note(noted)
  newest[noted] = math.max(last, job.e)
  job.y = job.e < last or nil
  if job.e > last then set('meta', noted, whole(job.e)) end
end

-- Ends jobs whose deadline has passed, the earliest first.
local function end_late(late, result_ttl, key_ttl)
  table.sort(late, function(one, other)
    if one[2].d ~= other[2].d then return one[2].d < other[2].d end
    return one[2].s % LANE < other[2].s % LANE
  end)
  local told, done, done_jobs, failed, failures = {}, {}, {}, {}, results_of({}, {}, {}, {})
  for nth, one in ipairs(late) do
    local id, job = one[1], one[2]
    told[nth] = id
    local outcome = fate_of(id)
    if is_final(outcome) then
      -- Whoever gave the answer died before the ack, and perhaps before it told it.
      done[#done + 1], done_jobs[#done_jobs + 1] = id, job
      owe(id, job, outcome)
    else
      record_crash(job)
      job.t = nil
      bury(id, job, 'expired', 'expired')
      add_failure(failures, id, job.a or 0, 'expired', 'expired')
      failed[#failed + 1] = job
    end
  end
  flush()
  finish(done, done_jobs, key_ttl)
  fail(failures, failed, result_ttl)
  tell_answers(told)
end

-- Takes jobs whose loan has ended out of it, of a few loans at a time. True when more is left.
local MOST_LOANS = 8
local function end_loans()
  local marks = redis.call('ZRANGE', key('loan_ends'), '-inf', now, 'BYSCORE', 'LIMIT', 0, MOST_LOANS)
  local loans = load_loans(marks)
  for _, mark in ipairs(marks) do
    local loan = loans[mark]
    for nth, job in ipairs(load_jobs(loan.ids)) do
      local id = loan.ids[nth]
      single(loan, id, job)
      leave(id, job)
      enter(id, job, 'L')
      save(id, job)
    end
    reduce(loan)
  end
  flush()
  return #marks == MOST_LOANS
end

-- What time does to jobs, at most `limit` of each kind: those whose delay or lease has ended go in line;
-- those whose deadline has passed die, or are done when they have been answered. True when more is left.
local function tidy(result_ttl, key_ttl, limit)
  local late = {}
  sweep()
  local is_cut = end_loans()
  local lapsed = redis.call('ZRANGE', key('leased'), '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
  local due = redis.call('ZRANGE', key('delayed'), '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
  for _, ids in ipairs({ lapsed, due }) do
    for nth, job in ipairs(load_jobs(ids)) do
      local id = ids[nth]
      if not expired(job) then
        leave(id, job)
        enter(id, job, 'L')
        save(id, job)
      elseif job.w == 'H' then
        late[#late + 1] = { id, job }
      end
    end
  end
  flush()
  is_cut = is_cut or #lapsed == limit or #due == limit
  for _, name in ipairs({ 'deadlines', 'answered' }) do
    local ids = redis.call('ZRANGE', key(name), '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
    is_cut = is_cut or #ids == limit
    for nth, job in ipairs(load_jobs(ids)) do late[#late + 1] = { ids[nth], job } end
  end
  end_late(late, result_ttl, key_ttl)
  return is_cut
end

local function count(name, from, to) return redis.call('ZCOUNT', key(name), from, to) end

-- Jobs whose loan has ended and that nobody has taken out of it yet.
local function overdue()
  local jobs = {}
  local marks = redis.call('ZRANGE', key('loan_ends'), '-inf', now, 'BYSCORE')
  for _, loan in pairs(load_loans(marks)) do
    for _, job in ipairs(load_jobs(loan.ids)) do jobs[#jobs + 1] = job end
  end
  return jobs
end

-- Jobs on loan: all but those that are anywhere else.
local function n_on_loan()
  local n = redis.call('HLEN', key('life'))
  for _, name in ipairs({ 'line', 'delayed', 'doomed', 'leased', 'dead' }) do
    n = n - redis.call('ZCARD', key(name))
  end
  return n
end

-- Jobs by state, and those whose lease has ended. What it reads does not grow with the backlog.
local function tally()
  local after = '(' .. whole(now)
  local answered = redis.call('ZRANGE', key('answered'), '-inf', now, 'BYSCORE')
  local n_done = 0
  for _, id in ipairs(answered) do
    if has_ended(id) then n_done = n_done + 1 end
  end
  local late = count('deadlines', '-inf', now) + #answered
  local lapsed = redis.call('ZRANGE', key('leased'), '-inf', now, 'BYSCORE')
  local jobs = load_jobs(lapsed)
  local alive, dead = {}, redis.call('ZCARD', key('dead')) + late - n_done
  for nth, job in ipairs(jobs) do
    if not expired(job) then
      alive[#alive + 1] = job
    elseif not has_ended(lapsed[nth]) then
      dead = dead + 1
    end
  end
  local lent = overdue()
  for _, job in ipairs(lent) do alive[#alive + 1] = job end
  local line = redis.call('ZCARD', key('line')) + count('delayed', '-inf', now)
  return {
    ready = line - (late - count('doomed', '-inf', now)) + #alive,
    held = count('leased', after, '+inf') + n_on_loan() - #lent,
    delayed = count('delayed', after, '+inf') + count('doomed', after, '+inf'),
    dead = dead,
    late = late,
    lapsed = jobs,
    alive = alive,
    strangers = redis.call('XLEN', inbox),
  }
end

-- The next moment at which time alone makes a job ready, and the same of delays alone.
local function next_due()
  local after = '(' .. whole(now)
  local soonest = redis.call('ZRANGE', key('delayed'), after, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
  soonest = tonumber(soonest[2])
  local next_delayed = soonest
  local loan = redis.call('ZRANGE', key('loan_ends'), after, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
  loan = tonumber(loan[2])
  if loan and not (soonest and soonest < loan) then soonest = loan end
  -- The first is the one but for those that die before.
  local from, n = 0, 1
  while true do
    local ids = redis.call('ZRANGE', key('leased'), after, '+inf', 'BYSCORE', 'LIMIT', from, n)
    for _, job in ipairs(load_jobs(ids)) do
      if soonest and soonest <= job.u then return soonest, next_delayed end
      -- One that dies before its lease ends comes back to nobody.
      if not job.d or job.d > job.u then return job.u, next_delayed end
    end
    if #ids < n then return soonest, next_delayed end
    from, n = from + n, 100
  end
end

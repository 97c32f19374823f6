-- What all scripts share. KEYS[1] is the stream that plain producers write to; every other key begins
-- with its name and shares its slot. ARGV[1] is the time in milliseconds, empty for the server's own.
local inbox = KEYS[1]
local LANE = 2251799813685248 -- 2^51: places of one priority
local EPOCH = 1735689600000   -- 2025: a place is a moment since then, times 1024
local SLICE = 4000            -- arguments of one call

local time = redis.call('TIME')
local server_now = time[1] * 1000 + math.floor(time[2] / 1000)
local now = tonumber(ARGV[1]) or server_now

local function key(name) return inbox .. ':' .. name end

local function whole(number) return string.format('%.0f', number) end

-- Reads many fields of a hash.
local function fetch(name, fields)
  local values = {}
  for from = 1, #fields, SLICE do
    local part = redis.call('HMGET', key(name), unpack(fields, from, math.min(from + SLICE - 1, #fields)))
    for nth = 1, #part do values[from + nth - 1] = part[nth] end
  end
  return values
end

local function load_jobs(ids)
  local jobs = fetch('life', ids)
  for nth, packed in ipairs(jobs) do jobs[nth] = packed and cmsgpack.unpack(packed) end
  return jobs
end

-- Changes are gathered, and carried out key by key: first what is taken away, so that a server whose
-- memory is full refuses new jobs only, and before anything was changed.
local drops, adds, sets, texts = {}, {}, {}, {}

local function gather(into, name, first, second)
  local list = into[name]
  if not list then list = {}; into[name] = list end
  list[#list + 1] = first
  if second then list[#list + 1] = second end
end
local function drop(name, member) gather(drops, name, member) end
local function add(name, score, member) gather(adds, name, score, member) end
local function set(name, field, value) gather(sets, name, field, value) end

local HASHES = { life = true, head = true, body = true, keys = true, meta = true, workers = true, phases = true }

local function carry_out(command, lists)
  for name, list in pairs(lists) do
    local verb = command or (HASHES[name] and 'HDEL' or 'ZREM')
    for from = 1, #list, SLICE do
      redis.call(verb, key(name), unpack(list, from, math.min(from + SLICE - 1, #list)))
    end
  end
end

local cost_change, n_deaths = 0, nil

local function flush()
  carry_out(nil, drops)
  if n_deaths then set('meta', 'deaths', whole(n_deaths)) end
  carry_out('HSET', sets)
  carry_out('ZADD', adds)
  for _, text in ipairs(texts) do redis.call('SET', key(text[1]), text[2], 'PX', text[3]) end
  if cost_change ~= 0 then redis.call('HINCRBY', key('meta'), 'cost', whole(cost_change)) end
  drops, adds, sets, texts, cost_change, n_deaths = {}, {}, {}, {}, 0, nil
end

-- The life of a job, packed: w where it is (L line, D delayed, X delayed beyond its deadline, H held,
-- Z dead), s its place with its priority, e when it was published, d its deadline, a attempts, t the
-- last lease, o who holds it, u when its lease or delay ends, k key, c cost, h history, r why and z
-- when it died.
local function save(id, job) set('life', id, cmsgpack.pack(job)) end

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

local function result_of(id)
  local found = redis.call('HMGET', key('result:' .. id), 'outcome', 'expires')
  if not found[1] then return nil, false end
  return tonumber(found[2] or 0) > now and found[1] or nil, true
end

local function completed(id) return result_of(id) == 'completed' end

-- Takes a job out of wherever it is.
local function leave(id, job)
  local where = job.w
  if where == 'L' then drop('line', id); drop('ages', id)
  elseif where == 'D' then drop('delayed', id)
  elseif where == 'X' then drop('doomed', id)
  elseif where == 'H' then drop('leased', id)
  elseif where == 'Z' then drop('dead', id) end
  if job.c and (where == 'L' or where == 'H') then cost_change = cost_change - job.c end
  if job.d and where ~= 'H' and where ~= 'Z' then drop('deadlines', id); drop('answered', id) end
end

local function enter(id, job, where)
  job.w = where
  if where == 'L' then add('line', job.s, id); add('ages', job.e, id)
  elseif where == 'D' then add('delayed', job.u, id)
  elseif where == 'X' then add('doomed', job.d, id)
  elseif where == 'H' then add('leased', job.u, id) end
  if job.c and (where == 'L' or where == 'H') then cost_change = cost_change + job.c end
  if job.d and where ~= 'H' then add(completed(id) and 'answered' or 'deadlines', job.d, id) end
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

local function bury(id, job, reason)
  leave(id, job)
  job.w, job.r, job.z, job.o, job.u = 'Z', reason, now, nil, nil
  n_deaths = (n_deaths or tonumber(redis.call('HGET', key('meta'), 'deaths') or 0)) + 1
  add('dead', n_deaths, id)
  save(id, job)
end

-- What is remembered of a job that is done: its last lease, and whose key it was.
local function remember(name, text, ttl)
  texts[#texts + 1] = { name, text .. ' ' .. whole(now + ttl), whole(math.max(ttl, 1)) }
end

local function remembered(text)
  local what, expires = string.match(text or '', '^(%S*) (%d+)$')
  if what and tonumber(expires) > now then return what end
end

local function forget(id, job)
  leave(id, job)
  drop('life', id); drop('head', id); drop('body', id)
  if job.k then drop('keys', job.k) end
end

local function finish(id, job, ttl)
  forget(id, job)
  remember('done:' .. id, job.t or '', ttl)
  if job.k then remember('key:' .. job.k, id, ttl) end
end

-- Offers a result; `fields` are those of its hash beside outcome, attempt and expires.
local function answer(id, attempt, outcome, ttl, fields)
  local is_completed = outcome == 'completed'
  local before, is_there = result_of(id)
  if before == 'completed' then return 'duplicate' end
  local chunks = redis.call('HMGET', key('chunks:' .. id), 'attempt', 'expires')
  local latest = tonumber(chunks[2] or 0) > now and tonumber(chunks[1]) or 0
  if attempt < latest then return 'stale' end
  if before and not is_completed then return 'duplicate' end
  local expires = whole(now + ttl)
  local name = key('result:' .. id)
  if chunks[1] then
    if latest == 0 or not is_completed or attempt > latest then
      redis.call('DEL', key('chunks:' .. id))
    else
      redis.call('HSET', key('chunks:' .. id), 'expires', expires)
      redis.call('PEXPIRE', key('chunks:' .. id), whole(math.max(ttl, 1)))
    end
  end
  if is_there then redis.call('DEL', name) end
  redis.call('HSET', name, 'outcome', outcome, 'attempt', whole(attempt), 'expires', expires, unpack(fields))
  redis.call('PEXPIRE', name, whole(math.max(ttl, 1)))
  if is_completed then
    local deadline = redis.call('ZSCORE', key('deadlines'), id)
    if deadline then
      redis.call('ZREM', key('deadlines'), id)
      redis.call('ZADD', key('answered'), deadline, id)
    end
  end
  return 'stored'
end

local function tell_arrival() redis.call('PUBLISH', key('arrivals'), '') end
local function tell_answers(ids)
  if #ids > 0 then redis.call('PUBLISH', key('answers'), table.concat(ids, ' ')) end
end

-- Places behind all that was published before.
local function places(n)
  local last = tonumber(redis.call('HGET', key('meta'), 'place') or 0)
  local first = math.max(last, (server_now - EPOCH) * 1024) + 1
  set('meta', 'place', whole(first + n - 1))
  return first
end

-- What time does to jobs, at most `limit` of each kind: those whose delay or lease has ended go in line;
-- those whose deadline has passed die, or are done when they have been answered. True when more is left.
local function tidy(result_ttl, key_ttl, limit)
  local late, told = {}, {}
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
  local is_cut = #lapsed == limit or #due == limit
  for _, name in ipairs({ 'deadlines', 'answered' }) do
    local ids = redis.call('ZRANGE', key(name), '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
    is_cut = is_cut or #ids == limit
    for nth, job in ipairs(load_jobs(ids)) do late[#late + 1] = { ids[nth], job } end
  end
  table.sort(late, function(one, other)
    if one[2].d ~= other[2].d then return one[2].d < other[2].d end
    return one[2].s % LANE < other[2].s % LANE
  end)
  for _, one in ipairs(late) do
    local id, job = one[1], one[2]
    if completed(id) then
      -- Whoever gave the answer died before the ack.
      finish(id, job, key_ttl)
    else
      record_crash(job)
      job.t = nil
      bury(id, job, 'expired')
    end
    told[#told + 1] = id
  end
  flush()
  for _, one in ipairs(late) do
    local id, job = one[1], one[2]
    if job.w == 'Z' then
      answer(id, job.a or 0, 'failed', result_ttl, { 'error', 'expired', 'finished-at', whole(now) })
    end
  end
  tell_answers(told)
  return is_cut
end

local function count(name, from, to) return redis.call('ZCOUNT', key(name), from, to) end

-- Jobs by state, and those whose lease has ended. What it reads does not grow with the backlog.
local function tally()
  local after = '(' .. whole(now)
  local answered = redis.call('ZRANGE', key('answered'), '-inf', now, 'BYSCORE')
  local n_done = 0
  for _, id in ipairs(answered) do
    if completed(id) then n_done = n_done + 1 end
  end
  local late = count('deadlines', '-inf', now) + #answered
  local lapsed = redis.call('ZRANGE', key('leased'), '-inf', now, 'BYSCORE')
  local jobs = load_jobs(lapsed)
  local alive, dead = {}, redis.call('ZCARD', key('dead')) + late - n_done
  for nth, job in ipairs(jobs) do
    if not expired(job) then
      alive[#alive + 1] = job
    elseif not completed(lapsed[nth]) then
      dead = dead + 1
    end
  end
  local line = redis.call('ZCARD', key('line')) + count('delayed', '-inf', now)
  return {
    ready = line - (late - count('doomed', '-inf', now)) + #alive,
    held = count('leased', after, '+inf'),
    delayed = count('delayed', after, '+inf') + count('doomed', after, '+inf'),
    dead = dead,
    late = late,
    lapsed = jobs,
    alive = alive,
    strangers = redis.call('XLEN', inbox),
  }
end

-- The next moment at which time alone makes a job ready.
local function next_due()
  local after = '(' .. whole(now)
  local soonest = redis.call('ZRANGE', key('delayed'), after, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
  soonest = tonumber(soonest[2])
  local from = 0
  while true do
    local ids = redis.call('ZRANGE', key('leased'), after, '+inf', 'BYSCORE', 'LIMIT', from, 100)
    for _, job in ipairs(load_jobs(ids)) do
      if soonest and soonest <= job.u then return soonest end
      -- One that dies before its lease ends comes back to nobody.
      if not job.d or job.d > job.u then return job.u end
    end
    if #ids < 100 then return soonest end
    from = from + 100
  end
end

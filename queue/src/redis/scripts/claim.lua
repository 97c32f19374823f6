-- ARGV: time, how many, lease, worker, mark of the lease, result_ttl, key_ttl, number of strangers,
-- per stranger its entry and what is wrong with it or an empty text, then their jobs.
-- Answers {deliveries, entries of the inbox that are jobs now once they are read, milliseconds until time
-- makes one ready or -1, how far the clock is ahead of the server's, whether to ask again at once, replies
-- that are owed}.
local max, lease, worker, mark = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local result_ttl, key_ttl, n_strangers = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

-- One that was cancelled before anybody had found its entry is owed its reply, once.
local replied = {}
local function reply_if_marked(one)
  if replied[one.id] then return end
  replied[one.id] = true
  local text = redis.call('HGET', key('done'), one.id)
  if remembered(text) ~= MARKED then return end
  one.job.q = string.match(one.text, '^[^\n]*')
  owe(one.id, one.job, 'cancelled')
  -- Until the moment that is noted for the sweep.
  set('done', one.id, string.sub(text, #MARKED + 1))
end

-- Makes jobs of what plain producers wrote.
local function take_in()
  local all, entries = {}, {}
  for nth = 1, n_strangers do
    local entry, wrong = ARGV[7 + 2 * nth], ARGV[8 + 2 * nth]
    local found = redis.call('XRANGE', inbox, entry, entry)[1]
    if found then
      local one = sketch(9 + 2 * n_strangers + (nth - 1) * FIELDS)
      one.entry, one.wrong = entry, wrong
      for field = 1, #found[2], 2 do
        if found[2][field] == 'body' then one.text = one.text .. found[2][field + 1]; break end
      end
      all[#all + 1], entries[#entries + 1] = one, entry
    end
  end
  if #all == 0 then return end
  redis.call('XDEL', inbox, unpack(entries))
  local failures, failed, last = results_of({}, {}, {}, {}), {}, -1
  for nth, found in ipairs(known_as(all)) do
    if found == all[nth].id then
      reply_if_marked(all[nth])
    elseif not found then
      local one = all[nth]
      local seq = tonumber(string.match(one.entry, '%d+$'))
      last = math.max((written(one.entry) - EPOCH) * 1024 + math.min(seq, 1023), last + 1)
      admit(one, last)
      if one.wrong ~= '' then
        flush()
        bury(one.id, one.job, one.wrong, 'invalid')
        add_failure(failures, one.id, 0, one.wrong, 'invalid')
        failed[#failed + 1] = one.job
      end
    end
  end
  flush()
  fail(failures, failed, result_ttl)
  tell_answers(failures.ids)
end

-- The first change needs no room: a server whose memory is full shall not keep its jobs from workers.
mark_layout(function() redis.call('ZREM', key('line'), '') end)
take_in()
local is_cut = tidy(result_ttl, key_ttl, 1000)
if n_strangers == 0 and redis.call('XLEN', inbox) > 0 then
  return { {}, strangers(math.min(math.max(max, 16), 256)), -1, server_now - now, 1, owed }
end
local ids = redis.call('ZRANGE', key('line'), 0, max - 1)
local lives = fetch('life', ids)
local deliveries, lent = {}, {}

-- When it was published, of a job of which nothing else is known.
local function plain(_, _, published, ...) return select('#', ...) == 0 and published end

local function lease_single(id, job, text)
  if expired(job) then return end
  leave(id, job)
  record_crash(job)
  job.a = (job.a or 0) + 1
  job.t, job.o, job.u = mark, worker, now + lease
  enter(id, job, 'H')
  save(id, job)
  deliveries[#deliveries + 1] = { id, job.a, job.e, job.d and 1 or 0, text }
end

local jobs, published = {}, {}
for nth, life in ipairs(lives) do
  published[nth] = plain(cmsgpack.unpack(life))
  jobs[nth] = not published[nth] and unpacked(life)
end
local texts_of = first_texts(ids)
for nth, text in ipairs(texts_of) do
  local id = ids[nth]
  if published[nth] and #lent < MOST_ON_LOAN then
    lent[#lent + 1] = id
    deliveries[#deliveries + 1] = { id, 1, published[nth], 0, text }
  else
    lease_single(id, jobs[nth] or unpacked(lives[nth]), text)
  end
end
if #lent > 0 then lend(mark, now + lease, worker, lent) end
if #deliveries == #texts_of and #texts_of > 0 then
  -- The head of the line as a whole costs the server less than each by its name.
  drops.line = nil
  redis.call('ZREMRANGEBYRANK', key('line'), 0, #texts_of - 1)
else
  for _, id in ipairs(lent) do drop('line', id) end
end
flush()
if #deliveries > 0 then return { deliveries, {}, -1, 0, 0, owed } end
local is_waiting = is_cut or redis.call('XLEN', inbox) > 0
local due = next_due()
return { {}, {}, due and due - now or -1, 0, is_waiting and 1 or 0, owed }

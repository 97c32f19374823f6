-- ARGV: time, result_ttl, key_ttl, id. Cancels a job that waits or runs. Answers {`waiting`, `running`, `marked`,
-- `ended` or `unknown`, or `again` where it is to be asked again at once, replies that are owed}.
local STEP = 1000
local READ = 32 -- entries that nobody has read and that are looked through: they may be long
local result_ttl, key_ttl, id = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
if tidy(result_ttl, key_ttl, STEP) then return { 'again', owed } end

-- Ends a job as if acked, stores that it was cancelled, and tells all who want to know. `mark` stands for the
-- last lease, where there was none.
local function cancel(job, headers, mark)
  local attempt = math.max(job.a or 0, (latest_pieces(id)))
  -- No settlement has ended it.
  job.t = mark
  finish({ id }, { job }, key_ttl)
  local text = 'failed ' .. whole(attempt) .. ' ' .. whole(now) .. ' cancelled\ncancelled'
  answer(results_of({ id }, { attempt }, { 'cancelled' }, { text }), result_ttl)
  if headers and string.find(headers, '"reply_to"', 1, true) then owed[#owed + 1] = { id, text, headers } end
  tell_answers({ id })
  tell_arrival()
  redis.call('PUBLISH', key('cancelled'), id)
end

-- One that a plain producer wrote and nobody has read: its entry, if it is among the first; else how many
-- were looked through.
local function entry_of()
  local named = named_after(id)
  local entries = named and redis.call('XRANGE', inbox, named, named) or {}
  if #entries == 0 then entries = first_entries(READ, '+') end
  for _, entry in ipairs(entries) do
    local fields = {}
    for nth = 1, #entry[2], 2 do fields[string.lower(entry[2][nth])] = entry[2][nth + 1] end
    if (fields['ebb-id'] or 'redis-' .. entry[1]) == id then return entry[1], fields end
  end
  return nil, #entries
end

local function cancel_unread()
  local entry, fields = entry_of()
  local n_read = not entry and fields
  if entry then
    redis.call('XDEL', inbox, entry)
    local to, trace = fields['ebb-reply-to'], fields['traceparent']
    cancel({}, to and cjson.encode({ reply_to = to, traceparent = trace }))
    return 'waiting'
  end
  if redis.call('XLEN', inbox) <= n_read then return 'unknown' end
  -- Whoever makes a job of its entry takes it for one that is done, and owes the reply.
  cancel({}, nil, MARKED)
  return 'marked'
end

-- The loan that a job is on, if it is on one.
local function loan_of(job)
  if job.w ~= 'L' or redis.call('ZSCORE', key('line'), id) then return end
  local marks = redis.call('ZRANGE', key('loan_ends'), 0, -1)
  for _, loan in pairs(load_loans(marks)) do
    if loan.left[id] then return loan end
  end
end

local before = fate_of(id)
if is_final(before) or remembered(redis.call('HGET', key('done'), id)) then return { 'ended', owed } end
local life = redis.call('HGET', key('life'), id)
if not life then return { cancel_unread(), owed } end
local job = unpacked(life)
local loan = loan_of(job)
local is_held = loan or (job.w == 'H' and job.u > now)
-- A failure that is stored while somebody holds the job is about to bury it, unless it is of an attempt before.
local attempt = loan and 1 or job.a or 0
if job.w == 'Z' or (before and is_held and attempt_of(id) >= attempt) then return { 'ended', owed } end
local headers = headers_of(id, job)
if loan then
  single(loan, id, job)
  reduce(loan)
end
cancel(job, headers)
return { is_held and 'running' or 'waiting', owed }

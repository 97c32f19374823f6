-- ARGV: time, result_ttl, key_ttl, part, where to go on in it or empty, last place or empty, last entry of the
-- inbox or empty. Deletes jobs that wait, a step of one part at a time, each part before those into which
-- its jobs go meanwhile: the inbox (6), the delayed (4), those delayed beyond their deadline (5), the line by
-- priority (0 to 2, and 3 for places beyond all).
-- Answers {how many, next part or -1, where to go on in it, last place, last entry, jobs whose bodies lie
-- elsewhere and are of use to no other queue, replies that are owed}.
-- Where to go on is a score, and how many of those with it stay: a count of all that stay would lead too far
-- once the first of them have left, as delayed jobs do when they are due.
local STEP = 500
local NEXT = { [6] = 4, [4] = 5, [5] = 0, [0] = 1, [1] = 2, [2] = 3, [3] = -1 }
local part, last, entry = tonumber(ARGV[4]), tonumber(ARGV[6]), ARGV[7]
local from, n_spared = string.match(ARGV[5], '^(%S+) (%d+)$')
-- What is published while the steps go on is not meant.
last = last or math.max(note('place'), (server_now - EPOCH) * 1024)
if entry == '' then
  entry = '0-0'
  local about = redis.call('EXISTS', inbox) == 1 and redis.call('XINFO', 'STREAM', inbox) or {}
  for nth = 1, #about, 2 do
    if about[nth] == 'last-generated-id' then entry = about[nth + 1] end
  end
end
if tidy(tonumber(ARGV[2]), tonumber(ARGV[3]), STEP) then
  return { 0, part, ARGV[5], last, entry, {}, owed }
end

local function purge_inbox()
  local entries, referring, found = {}, {}, first_entries(STEP, entry)
  for nth, one in ipairs(found) do
    entries[nth] = one[1]
    local fields = {}
    for field = 1, #one[2], 2 do fields[string.lower(one[2][field])] = one[2][field + 1] end
    if fields['ebb-body-ref'] then
      referring[#referring + 1] = { one[1], fields['ebb-body-ref'], fields.body or '' }
    end
  end
  if #entries > 0 then redis.call('XDEL', inbox, unpack(entries)) end
  return { #entries, #entries > 0 and 6 or NEXT[6], '', last, entry, referring, owed }
end
if part == 6 then return purge_inbox() end

local name, first, final = 'line', part * LANE, part * LANE + math.min(last, LANE - 1)
if part == 4 then name = 'delayed' elseif part == 5 then name = 'doomed' end
final = part < 3 and whole(final) or '+inf'
first = part < 4 and whole(first) or '-inf'
local found = redis.call(
  'ZRANGE', key(name), from or first, final, 'BYSCORE', 'LIMIT', n_spared or 0, STEP, 'WITHSCORES'
)
local ids, scores = {}, {}
for nth = 1, #found, 2 do ids[#ids + 1], scores[#scores + 1] = found[nth], found[nth + 1] end
local taken, referring = {}, {}
for nth, job in ipairs(load_jobs(ids)) do
  local id = ids[nth]
  if scores[nth] ~= from then from, n_spared = scores[nth], 0 end
  if not job or (part >= 4 and job.s % LANE > last) then
    n_spared = n_spared + 1
  else
    taken[#taken + 1] = id
    local is_elsewhere = leave_nothing(id)
    if not is_elsewhere and refers(headers_of(id, job)) then
      referring[#referring + 1] = referring_job(id, job)
    end
    forget(id, job)
  end
end
flush()
tell_answers(taken)
local rest = ''
if #ids < STEP then part = NEXT[part] else rest = from .. ' ' .. whole(n_spared) end
return { #taken, part, rest, last, entry, referring, owed }

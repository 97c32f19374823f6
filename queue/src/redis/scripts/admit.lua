-- New jobs, one per eight arguments: id, headers with a line feed and the body, lane, when it was
-- published, deadline, due, key, cost; what is missing is empty.
local FIELDS = 8
local LONG = 65536 -- to read less than this for its headers takes no time
local SHORT = 4096 -- headers up to this are worth being kept twice

local function sketch(nth)
  local whole_job, lane, published, deadline, due, name, cost = unpack(ARGV, nth + 1, nth + 7)
  local job = {
    s = tonumber(lane) * LANE, e = tonumber(published), d = tonumber(deadline), c = tonumber(cost),
    k = name ~= '' and name or nil,
  }
  return { id = ARGV[nth], job = job, text = whole_job, due = tonumber(due) }
end

-- The id under which each job, or the first with its key, is known already; false where it is new.
local function known_as(all)
  local ids, names = {}, {}
  for nth, one in ipairs(all) do
    ids[nth] = one.id
    if one.job.k then names[#names + 1] = one.job.k end
  end
  local alive, done = fetch('life', ids), fetch('done', ids)
  local by_name, seen_ids, seen_keys, found = {}, {}, {}, {}
  local first, last = fetch('keys', names), fetch('done_keys', names)
  for nth, name in ipairs(names) do by_name[name] = first[nth] or remembered(last[nth]) end
  for nth, one in ipairs(all) do
    local id, name = one.id, one.job.k
    local is_known = alive[nth] or seen_ids[id] or remembered(done[nth])
    local by_key = name and (by_name[name] or seen_keys[name])
    found[nth] = is_known and id or by_key or false
    if not found[nth] then
      seen_ids[id] = true
      if name then seen_keys[name] = id end
    end
  end
  return found
end

local function admit(one, at)
  local id, job = one.id, one.job
  if #one.text > LONG then
    local ending = string.find(one.text, '\n', 1, true)
    if ending and ending <= SHORT then job.q = string.sub(one.text, 1, ending - 1) end
  end
  place(job, at)
  set('jobs', id, one.text)
  if job.k then set('keys', job.k, id) end
  wait(id, job, one.due)
  save(id, job)
end

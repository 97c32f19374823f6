-- New jobs, one per nine arguments from ARGV[first] on: id, headers, body, lane, when it was published,
-- deadline, due, key, cost; what is missing is empty.
local FIELDS = 9

local function sketch(nth)
  local headers, body, lane, published, deadline, due, name, cost = unpack(ARGV, nth + 1, nth + 8)
  local job = {
    s = tonumber(lane) * LANE, e = tonumber(published), d = tonumber(deadline), c = tonumber(cost),
    k = name ~= '' and name or nil,
  }
  return { id = ARGV[nth], job = job, head = headers, body = body, due = tonumber(due) }
end

-- The id under which each job, or the first with its key, is known already; false where it is new.
local function known_as(all)
  local ids, done, names, keys_done = {}, {}, {}, {}
  for nth, one in ipairs(all) do
    ids[nth], done[nth] = one.id, key('done:' .. one.id)
    if one.job.k then
      names[#names + 1] = one.job.k
      keys_done[#keys_done + 1] = key('key:' .. one.job.k)
    end
  end
  local alive = fetch('life', ids)
  local by_name, seen_ids, seen_keys, found = {}, {}, {}, {}
  local first = fetch('keys', names)
  for nth, name in ipairs(names) do
    by_name[name] = first[nth] or remembered(redis.call('GET', keys_done[nth]))
  end
  for nth, one in ipairs(all) do
    local id, name = one.id, one.job.k
    local is_known = alive[nth] or seen_ids[id] or remembered(redis.call('GET', done[nth]))
    local by_key = name and (by_name[name] or seen_keys[name])
    found[nth] = is_known and id or by_key or false
    if not found[nth] then
      seen_ids[id] = true
      if name then seen_keys[name] = id end
    end
  end
  return found
end

local function admit(one, place)
  local id, job = one.id, one.job
  job.s = job.s + place
  set('body', id, one.body); set('head', id, one.head)
  if job.k then set('keys', job.k, id) end
  wait(id, job, one.due)
  save(id, job)
end

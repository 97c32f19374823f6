-- ARGV: time. Reads only. Answers {ready, held, delayed, dead, oldest ready or -1, next due or -1,
-- cost in thousandths or -1 when it would take too long to tell, time}.
local LIMIT = 2000
local depth = tally()
local ripe = redis.call('ZRANGE', key('delayed'), '-inf', now, 'BYSCORE', 'LIMIT', 0, LIMIT)
local ripe_jobs = load_jobs(ripe)
local oldest

local function older(moment)
  if moment and (not oldest or moment < oldest) then oldest = moment end
end

-- The first of some that lives: the head of each priority, and of those that are older than their place.
local function first_alive(ids)
  for _, job in ipairs(load_jobs(ids)) do
    if not expired(job) then return older(job.e) end
  end
end
local n_heads = math.min(depth.late, LIMIT) + 1
for lane = 0, 2 do
  local from, to = whole(lane * LANE), whole((lane + 1) * LANE - 1)
  first_alive(redis.call('ZRANGE', key('line'), from, to, 'BYSCORE', 'LIMIT', 0, n_heads))
end
first_alive(redis.call('ZRANGE', key('ages'), 0, n_heads - 1))
for _, job in ipairs(ripe_jobs) do
  if not expired(job) then older(job.e) end
end
for _, job in ipairs(depth.alive) do older(job.e) end
if depth.strangers > 0 then
  local first = redis.call('XRANGE', inbox, '-', '+', 'COUNT', 1)[1]
  if first then older(tonumber(string.match(first[1], '^(%d+)')) + now - server_now) end
end

-- The sum of what is in line or held, without what died of its deadline, with what is due by now.
local cost = tonumber(redis.call('HGET', key('meta'), 'cost') or 0)
if depth.ready + depth.held == 0 then
  cost = 0
elseif depth.late > LIMIT or #ripe == LIMIT then
  cost = -1
else
  for _, job in ipairs(ripe_jobs) do
    if not expired(job) then cost = cost + (job.c or 0) end
  end
  for _, name in ipairs({ 'deadlines', 'answered' }) do
    local ids = redis.call('ZRANGE', key(name), '-inf', now, 'BYSCORE')
    for _, job in ipairs(load_jobs(ids)) do
      if job.w == 'L' then cost = cost - (job.c or 0) end
    end
  end
  for _, job in ipairs(depth.lapsed) do
    if expired(job) then cost = cost - (job.c or 0) end
  end
end
local ready = depth.ready + depth.strangers
return { ready, depth.held, depth.delayed, depth.dead, oldest or -1, next_due() or -1, cost, now }

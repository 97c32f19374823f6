-- ARGV: time, how many strangers are read. Reads only. Answers {ready, held, delayed, dead, oldest ready
-- or -1, next due or -1, cost in thousandths or -1 when it would take too long to tell, ready jobs of each
-- priority, soonest deadline of a ready job or -1, time, how far the clock is ahead of the server's,
-- strangers, the first of them}. All strangers count as ready and normal, and as nothing else.
local LIMIT = 2000            -- jobs that are late, or due, and are read
local MOST, PAGE = 1000, 100  -- jobs of a priority, or with a deadline to come, that are read
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
  local from, to = lane_ends(lane)
  first_alive(redis.call('ZRANGE', key('line'), from, to, 'BYSCORE', 'LIMIT', 0, n_heads))
end
first_alive(redis.call('ZRANGE', key('ages'), 0, n_heads - 1))
for _, job in ipairs(ripe_jobs) do
  if not expired(job) then older(job.e) end
end
for _, job in ipairs(depth.alive) do older(job.e) end

-- Jobs in line or due whose deadline has passed.
local is_too_late = depth.late > LIMIT
local is_too_much = is_too_late or #ripe == LIMIT
local late_jobs = {}
if depth.late > 0 and not is_too_late then
  for _, name in ipairs({ 'deadlines', 'answered' }) do
    local ids = redis.call('ZRANGE', key(name), '-inf', now, 'BYSCORE')
    for _, job in ipairs(load_jobs(ids)) do
      if job.w ~= 'X' then late_jobs[#late_jobs + 1] = job end
    end
  end
end

-- The sum of what is in line or held, without what died of its deadline, with what is due by now.
local cost = note('cost')
if depth.ready + depth.held == 0 then
  cost = 0
elseif is_too_much then
  cost = -1
else
  for _, job in ipairs(ripe_jobs) do
    if not expired(job) then cost = cost + (job.c or 0) end
  end
  for _, job in ipairs(late_jobs) do
    if job.w == 'L' then cost = cost - (job.c or 0) end
  end
  for _, job in ipairs(depth.lapsed) do
    if expired(job) then cost = cost - (job.c or 0) end
  end
end

local by_priority, first_deadline = { 0, depth.strangers, 0 }, nil
local function count_in(job, n)
  local lane = lane_of(job) + 1
  by_priority[lane] = by_priority[lane] + n
end
local function sooner(moment)
  if moment and (not first_deadline or moment < first_deadline) then first_deadline = moment end
end
-- Where more are late than are read, the last of each priority are: what came since is among them. Of a
-- longer line at least so many are alive as there are more than late ones; `unsure` is where the rest is.
local unsure
for lane = 1, 3 do
  local from, to = lane_ends(lane - 1)
  local n = count('line', from, to)
  if is_too_late and n > 0 then
    local last = redis.call('ZRANGE', key('line'), to, from, 'BYSCORE', 'REV', 'LIMIT', 0, MOST)
    local n_alive = 0
    for _, job in ipairs(load_jobs(last)) do
      if not expired(job) then n_alive = n_alive + 1 end
    end
    if n > MOST then
      n_alive = math.max(n_alive, n - depth.late)
      unsure = unsure and 2 or lane
    end
    n = n_alive
  end
  by_priority[lane] = by_priority[lane] + n
end
for _, job in ipairs(ripe_jobs) do
  if not expired(job) then
    count_in(job, 1)
    sooner(job.d)
  end
end
for _, job in ipairs(depth.alive) do
  count_in(job, 1)
  sooner(job.d)
end
for _, job in ipairs(late_jobs) do
  if job.w == 'L' then count_in(job, -1) end
end
-- What is of no known priority counts as normal.
if #ripe == LIMIT then unsure = 2 end
local high, normal, low = unpack(by_priority)
local rest = depth.ready + depth.strangers - high - normal - low
if rest > 0 and unsure then by_priority[unsure] = by_priority[unsure] + rest end

-- Before the first deadline in line are those of delayed jobs alone.
local function sooner_in_line(name)
  for from = 0, MOST - PAGE, PAGE do
    local ids = redis.call('ZRANGE', key(name), '(' .. whole(now), '+inf', 'BYSCORE', 'LIMIT', from, PAGE)
    for _, job in ipairs(load_jobs(ids)) do
      if job.w == 'L' then return sooner(job.d) end
    end
    if #ids < PAGE then return end
  end
end
sooner_in_line('deadlines')
sooner_in_line('answered')

high, normal, low = unpack(by_priority)
local due, next_delayed = next_due()
return {
  depth.ready + depth.strangers, depth.held, depth.delayed, depth.dead, oldest or -1, due or -1, next_delayed or -1, cost,
  high, normal, low, first_deadline or -1, now, server_now - now, depth.strangers,
  strangers(tonumber(ARGV[2])),
}

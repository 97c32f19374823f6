-- ARGV: time, then `create` where the queue may be created, and the layout. Answers {the first key of a
-- wrong type or empty, its type, layout or empty}.
local TYPES = {
  life = 'hash', jobs = 'hash', keys = 'hash', done = 'hash', done_keys = 'hash', fates = 'hash',
  meta = 'hash', workers = 'hash', phases = 'hash', seen = 'zset', line = 'zset', ages = 'zset',
  delayed = 'zset', doomed = 'zset', leased = 'zset', deadlines = 'zset', answered = 'zset',
  dead = 'zset', done_ends = 'zset', result_ends = 'zset', loans = 'hash', loan_ends = 'zset',
}
local kind = redis.call('TYPE', inbox).ok
if kind ~= 'none' and kind ~= 'stream' then return { inbox, kind, '' } end
for name, expected in pairs(TYPES) do
  kind = redis.call('TYPE', key(name)).ok
  if kind ~= 'none' and kind ~= expected then return { key(name), kind, '' } end
end
if ARGV[2] == 'create' then redis.call('HSETNX', key('meta'), 'layout', ARGV[3]) end
return { '', '', redis.call('HGET', key('meta'), 'layout') or '' }

-- ARGV: time, how long a status counts, worker, phase, status.
local id, phase, ttl = ARGV[3], ARGV[4], tonumber(ARGV[2])
local gone = redis.call('ZRANGE', key('seen'), '-inf', now - ttl, 'BYSCORE')
for _, other in ipairs(gone) do
  drop('seen', other); drop('workers', other); drop('phases', other)
end
flush()
local before = redis.call('HGET', key('phases'), id)
redis.call('HSET', key('workers'), id, ARGV[5])
redis.call('HSET', key('phases'), id, phase)
redis.call('ZADD', key('seen'), now, id)
for _, name in ipairs({ 'workers', 'phases', 'seen' }) do redis.call('PEXPIRE', key(name), whole(10 * ttl)) end
if before ~= phase then tell_arrival() end
return 0

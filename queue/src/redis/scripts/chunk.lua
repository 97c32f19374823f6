-- ARGV: time, result_ttl, id, attempt, place of the piece, body. Answers `stored`, `duplicate` or `stale`.
local ttl, id, attempt, seq, body = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local name = key('chunks:' .. id)
if is_final(fate_of(id)) then return 'stale' end
local found = redis.call('HMGET', name, 'attempt', 'expires')
local latest = tonumber(found[2] or 0) > now and tonumber(found[1]) or 0
if attempt < latest then return 'stale' end
if found[1] and attempt > latest then redis.call('DEL', name) end
if redis.call('HSETNX', name, 'piece:' .. seq, body) == 0 then return 'duplicate' end
redis.call('HSET', name, 'attempt', ARGV[4], 'expires', whole(now + ttl))
redis.call('PEXPIRE', name, whole(math.max(ttl, 1)))
if note('pieces') < now + ttl then redis.call('HSET', key('meta'), 'pieces', whole(now + ttl)) end
tell_answers({ id })
return 'stored'
